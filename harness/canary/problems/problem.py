"""One word problem with its worked answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def key_of(template: str, numbers: tuple[int, ...]) -> str:
    """Return what identifies a problem whatever its words are: a hash of its template and its numbers."""
    text = f"{template}:{','.join(map(str, numbers))}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class WordProblem:
    """One word problem in GSM8K's form.

    Attributes:
        question: 25 to 70 words, mostly.
        answer: one line a step, each with an annotation such as `<<48/2=24>>`; the last line is `#### 24`.
        template: stable id, "family/name".
        family: what kind of story it is.
        numbers: the numbers that were drawn and that the solution rests on. The number of a distractor sentence is
            none of them: a problem with another distractor is the same problem.
        steps: lines of the answer before the last.
    """

    question: str
    answer: str
    template: str
    family: str
    numbers: tuple[int, ...]
    steps: int

    def key(self) -> str:
        """Return the hash of (template, numbers)."""
        return key_of(self.template, self.numbers)

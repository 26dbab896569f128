"""The scores of an answer: lm-eval's two extractors, and the number by value."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from harness.gsm8k.data import Row
from harness.gsm8k.numeric import canonical, extract_number, same_number

STRICT, FLEXIBLE = "strict-match", "flexible-extract"
INVALID = "[invalid]"
"""What lm-eval's filters return when they find nothing. It is scored as any other text: as wrong."""


@dataclass(frozen=True)
class Scores:
    """One answer by lm-eval's two extractors and by value, with what each of them read."""

    strict: bool
    flexible: bool
    numeric: bool
    extracted_strict: str
    extracted_flexible: str
    extracted_numeric: str | None


class Scorer(Protocol):
    """Scores answers to the questions of a task, by their place."""

    def score(self, index: int, expected: str, text: str) -> Scores:
        """Score one answer."""


@dataclass(frozen=True)
class OwnScorer:
    """lm-eval's scores of one task: its filters and exact_match, or its own `process_results`."""

    docs: list[Row]
    golds: list[str]
    pipelines: dict[str, Callable[[str, Row], str]]
    is_right: Callable[[Row, str, str], bool]

    def score(self, index: int, expected: str, text: str) -> Scores:
        """Score one answer with the task's own filters and metric, and by value."""
        doc, gold = self.docs[index], self.golds[index]
        read = {name: extract(text, doc) for name, extract in self.pipelines.items()}
        names = list(read)
        strict = read.get(STRICT, read[names[0]])
        flexible = read.get(FLEXIBLE, read[names[-1]])
        right = {extracted: self.is_right(doc, gold, extracted) for extracted in {strict, flexible}}
        number = extract_number(text)
        # A task whose answers are no numbers has no third opinion: it follows the second.
        numeric = same_number(number, expected) if canonical(expected) else right[flexible]
        return Scores(right[strict], right[flexible], numeric, strict, flexible, number)


@dataclass(frozen=True)
class JoinedScorer:
    """The scores of a group: each question by its own task. `starts`: index of the first question of each task."""

    starts: list[int]
    parts: list[Scorer]

    def score(self, index: int, expected: str, text: str) -> Scores:
        """Score one answer."""
        part = bisect_right(self.starts, index) - 1
        return self.parts[part].score(index - self.starts[part], expected, text)

"""Two passes over questions, so that a server can be compared with itself; live, or as they were recorded.

The passes put the questions into batches of different sizes and orders: what a server rounds differently then is its noise.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.gsm8k.logprobs.ask import ANSWER_FORMS, REFERENCE_FORMS, Form, LogprobError
from harness.gsm8k.logprobs.divergence import Position
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.gsm8k.logprobs.ask import LogprobServer
    from harness.gsm8k.task import Question

ANSWER_TOKENS = 64
"""Of a server's own answer: enough steps of decoding to show what a prompt's reading does not run through."""
BLOCK = 8
"""Questions that are asked, and looked at, together."""
TOGETHER = (BLOCK, 2)
"""Questions in flight in each pass."""

Asked = dict[str, list[Position]]
"""Positions by the name of what was asked: "reference" and "answer", where the server gives them."""


@dataclass
class Passes:
    """One question asked twice: what each pass gave, or the error that one of them ended in."""

    first: Asked = field(default_factory=dict)
    second: Asked = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Forms:
    """How a source gives logprobs; None for what it does not give, `refused` says why."""

    reference: Form | None = None
    answer: Form | None = None
    refused: str = ""

    @property
    def given(self) -> dict[str, Form]:
        """The forms that are there, by what is asked."""
        found = {"reference": self.reference, "answer": self.answer}
        return {name: form for name, form in found.items() if form is not None}


class Source(Protocol):
    """What is compared: a live server or a recording."""

    async def prepare(self, question: Question) -> Forms:
        """Return the forms in which it gives logprobs, tried on a question. Called first, once."""

    async def passes(self, questions: Sequence[Question]) -> dict[int, Passes]:
        """Return both passes over questions, by their index."""


@dataclass
class Live:
    """A live server as a source.

    Attributes:
        server: to be asked.
        max_tokens: of its own answers.
    """

    server: LogprobServer
    max_tokens: int = ANSWER_TOKENS
    forms: Forms = Forms()

    async def prepare(self, question: Question) -> Forms:
        """Try the forms in order on one question; the first that is answered is kept."""
        refused: dict[str, str] = {}

        async def first(forms: Sequence[Form]) -> Form | None:
            for form in forms:
                try:
                    await self.server.ask(question, form, 1)
                except LogprobError as error:
                    refused[form.name] = str(error)
                else:
                    return form
            return None

        reference, answer = await first(REFERENCE_FORMS), await first(ANSWER_FORMS)
        self.forms = Forms(reference, answer, "; ".join(f"{name}: {said}" for name, said in refused.items()))
        return self.forms

    async def passes(self, questions: Sequence[Question]) -> dict[int, Passes]:
        """Ask every question twice: in order, then in reverse with fewer in flight."""
        found = {q.index: Passes() for q in questions}
        for number, order in enumerate((questions, questions[::-1])):
            room = asyncio.Semaphore(TOGETHER[number])
            await asyncio.gather(*(self._one(q, number, room, found[q.index]) for q in order))
        return found

    async def _one(self, question: Question, number: int, room: asyncio.Semaphore, passes: Passes) -> None:
        given = self.forms.given
        async with room:
            try:
                asked = await asyncio.gather(
                    *(self.server.ask(question, form, self.max_tokens) for form in given.values())
                )
            except LogprobError as error:
                passes.error = str(error)
                return
        setattr(passes, ("first", "second")[number], dict(zip(given, asked, strict=True)))


@dataclass
class Recording:
    """Recorded passes as a source.

    Attributes:
        about: what was asked of whom; must be equal for what is compared.
        forms: that were used.
        found: by the index of the question.
    """

    about: dict[str, Any]
    forms: Forms
    found: dict[int, Passes]

    async def prepare(self, question: Question) -> Forms:
        """Return the recorded forms."""
        del question
        return self.forms

    async def passes(self, questions: Sequence[Question]) -> dict[int, Passes]:
        """Return what was recorded of the questions."""
        return {q.index: self.found.get(q.index, Passes(error="not in the recording")) for q in questions}

    def write(self, path: Path) -> None:
        """Write the recording as JSON; logprobs with six decimals, far below what the comparison resolves."""

        def rounded(asked: Asked) -> Any:
            return {
                name: [[p.token, {t: round(v, 6) for t, v in p.top.items()}] for p in positions]
                for name, positions in asked.items()
            }

        stated = {
            "about": self.about,
            "forms": {name: asdict(form) for name, form in self.forms.given.items()},
            "questions": {
                index: {"first": rounded(p.first), "second": rounded(p.second), "error": p.error}
                for index, p in self.found.items()
            },
        }
        path.write_text(json.dumps(stated) + "\n", encoding="utf-8")


async def record_passes(source: Source, questions: Sequence[Question], about: dict[str, Any]) -> Recording:
    """Return a recording of questions, asked in the blocks in which a comparison asks them."""
    forms = await source.prepare(questions[0])
    found: dict[int, Passes] = {}
    for start in range(0, len(questions), BLOCK):
        found |= await source.passes(questions[start : start + BLOCK])
    return Recording(about, forms, found)


def read_recording(path: Path) -> Recording:
    """Return a recording that `Recording.write` wrote.

    Raises:
        UsageError: it cannot be read as one.
    """

    def asked(stated: dict[str, Any]) -> Asked:
        return {name: [Position(token, top) for token, top in places] for name, places in stated.items()}

    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        forms = {name: Form(**form) for name, form in stated["forms"].items()}
        return Recording(
            stated["about"],
            Forms(forms.get("reference"), forms.get("answer")),
            {
                int(index): Passes(asked(one["first"]), asked(one["second"]), one["error"])
                for index, one in stated["questions"].items()
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: expected recorded logprobs, got {type(error).__name__}: {error}; record them again"
        ) from None

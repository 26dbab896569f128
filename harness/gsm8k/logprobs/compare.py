"""A server compared with another one by the probabilities that both give to the same tokens.

It finds a broken expert in 32 questions where accuracy needs the whole test set, and needs no right answer: what is compared
is the distribution of `against` with the server's, beside that of `against` with itself. Questions are asked in blocks, each
twice of each; the comparison stops at the first block that decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from harness.gsm8k.logprobs.divergence import Divergence, Position, along, mean_kl
from harness.gsm8k.logprobs.evidence import ERROR, Compared, Tested, confirmed, judged, needed
from harness.gsm8k.logprobs.passes import BLOCK, Asked, Forms, Passes, Source
from harness.gsm8k.statistics import wilson
from harness.records.parts.gsm8k import Decision
from harness.records.parts.gsm8k_logprobs import Gsm8kLogprobPlace, Gsm8kLogprobQuestion, Gsm8kLogprobs

if TYPE_CHECKING:
    from harness.gsm8k.task import Question

QUESTIONS = 32
ALLOWED = 1e-4
"""Nats per token that count as none: more than twice what right kernels make of the canary (docs/gsm8k-logprobs.md)."""
MOST_LOST = 0.25
"""Share of questions without logprobs above which nothing is judged."""
WORST = 8


@dataclass
class LogprobComparison:
    """A comparison, as far as it has come.

    Attributes:
        allowed: nats per token that count as none.
        planned: how many questions are to be compared.
        server, against: how each gives logprobs.
        unlike: why the two cannot be compared, "" where they can.
        questions: those compared, in the order asked.
        lost: errors of questions that could not be compared, with their counts.
        improper: places where the server gave no distribution.
        again: the comparison of the same questions, asked once more where only a few were far apart.
    """

    allowed: float
    planned: int
    server: Forms
    against: Forms
    unlike: str = ""
    questions: list[Gsm8kLogprobQuestion] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    improper: int = 0
    again: LogprobComparison | None = None
    _found: dict[str, list[Divergence]] = field(default_factory=dict)
    _within: list[Divergence] = field(default_factory=list)
    _within_server: list[Divergence] = field(default_factory=list)
    _places: list[Gsm8kLogprobPlace] = field(default_factory=list)

    def add(self, index: int, server: Passes, against: Passes) -> None:
        """Compare one question: the first pass of `against` with its second and with the server's second.

        So both comparisons are of passes with different company, and the same in everything that is not the server's own.
        """
        error = server.error or against.error
        if error:
            self.lost[error] += 1
            return
        kinds = _kinds(server, against)
        self.unlike = self.unlike or next(
            (
                said
                for kind in kinds
                if (said := _unlike(index, kind, against.first[kind], server.second[kind]))
            ),
            "",
        )
        self._look_for_improper(index, server, against, kinds)
        across = {kind: self._places_of(index, kind, against.first, server.second) for kind in kinds}
        within = {kind: along(against.first[kind], against.second[kind]) for kind in kinds}
        own = {kind: along(server.first[kind], server.second[kind]) for kind in kinds}
        for kind in kinds:
            self._found.setdefault(kind, []).extend(across[kind])
            self._within += within[kind]
            self._within_server += own[kind]
        places = [d for found in across.values() for d in found]
        kl, noise, own_noise = (max(map(mean_kl, by.values()), default=0.0) for by in (across, within, own))
        agree = sum(d.agree for d in places)
        self.questions.append(Gsm8kLogprobQuestion(index, kl, noise, own_noise, len(places), agree))
        self._places = sorted(self._places, key=lambda place: -place.kl)[:WORST]

    def _look_for_improper(self, index: int, server: Passes, against: Passes, kinds: Sequence[str]) -> None:
        def count(passes: Passes) -> int:
            given = (asked[kind] for asked in (passes.first, passes.second) for kind in kinds)
            return sum(not position.proper for positions in given for position in positions)

        self.improper += count(server)
        if count(against):
            self.unlike = self.unlike or f"the server compared with gives no distribution in question {index}"

    def _places_of(self, index: int, kind: str, against: Asked, server: Asked) -> list[Divergence]:
        found = along(against[kind], server[kind])
        for place, (d, p, q) in enumerate(zip(found, against[kind], server[kind], strict=False)):
            told = (q.likeliest, p.likeliest) if p.top and q.top else ("", "")
            self._places.append(Gsm8kLogprobPlace(index, kind, place, p.token, d.kl, *told))
        return found

    def tested(self, *, last: bool = True) -> Tested:
        """Return what the tests say of the questions so far; `last` if no more will come."""
        return judged(self.compared(), self.allowed, last=last)

    def compared(self) -> list[Compared]:
        """Return what the tests are of."""
        return [Compared(q.kl, q.within) for q in self.questions]

    @property
    def decided(self) -> bool:
        """Whether more questions would not change the decision."""
        return bool(self.unlike or self.improper) or self.tested(last=False).everywhere

    def part(self) -> Gsm8kLogprobs:
        """Return what the record holds."""
        found = [d for of_kind in self._found.values() for d in of_kind]
        agree = sum(d.agree for d in found)
        interval = wilson(agree, len(found)) if found else None
        return Gsm8kLogprobs(
            planned=self.planned,
            allowed=self.allowed,
            tokens=len(found),
            kl=mean_kl(found),
            kl_by={kind: mean_kl(of_kind) for kind, of_kind in self._found.items()},
            within=mean_kl(self._within),
            within_server=mean_kl(self._within_server),
            agreement=agree / len(found) if found else None,
            agreement_interval=[interval.low, interval.high] if interval else None,
            improper=self.improper,
            forms={kind: f"{form.name}, top {form.top}" for kind, form in self.server.given.items()},
            lost=dict(self.lost),
            questions=self.questions,
            worst=self._places,
        )

    def decision(self) -> Decision:
        """Return PASS, FAIL (logprobs) or UNKNOWN with the reason."""
        part, found = self.part(), self.tested()
        details = {f.name: getattr(found, f.name) for f in fields(found)} | {"error": ERROR}
        unknown = self._unknown()
        if unknown is not None:
            return Decision("UNKNOWN", *unknown, details)
        figures = (
            f"KL {part.kl:.2g} nats per token over {part.tokens:,} tokens of {len(self.questions)} questions (against "
            f"itself {part.within:.2g}, allowed {self.allowed:g}), top-1 agreement {part.agreement or 0.0:.4f}"
        )
        if self.improper:
            said = f"no distribution at {self.improper} places (NaN or no probability at all)"
            return Decision("FAIL", "logprobs", f"{said}; {figures}", details)
        if found.everywhere:
            said = f"{found.further} of {len(self.questions)} questions further apart than allowed"
        elif not found.in_a_few:
            return Decision("PASS", "", f"no further than allowed: {figures}", details)
        elif self.again is None or not confirmed(self.compared(), self.again.compared(), self.allowed):
            said = f"{found.tail_questions} questions far apart, but not so many when all were asked again"
            return Decision("UNKNOWN", "undecided", f"{said}: a race, or rare noise; {figures}", details)
        else:
            said = f"{found.tail_questions} questions far apart, and as many when all were asked again"
        noisy = part.within_server > max(part.kl / 2, self.allowed)
        also = f"; the server differs from itself by {part.within_server:.2g}" if noisy else ""
        return Decision("FAIL", "logprobs", f"{said}: {figures}{_worst(part)}{also}", details)

    def _unknown(self) -> tuple[str, str] | None:
        """Return qualifier and reason where nothing can be judged."""
        if not (self.server.given.keys() & self.against.given.keys()):
            said = "; ".join(
                f"{name} gives {', '.join(forms.given) or 'none'} ({forms.refused or 'nothing refused'})"
                for name, forms in (("the server", self.server), ("the other", self.against))
            )
            return "logprobs", f"no logprobs that both give: {said}"
        if self.unlike:
            return "unlike", self.unlike
        lost = sum(self.lost.values())
        asked = lost + len(self.questions)
        if not self.questions or lost > MOST_LOST * asked:
            worst = self.lost.most_common(1)
            return (
                "infra",
                f"{lost} of {asked} questions without logprobs{f': {worst[0][0]}' if worst else ''}",
            )
        if len(self.questions) < needed() and not (self.improper or self.tested().in_a_few):
            few = f"{len(self.questions)} questions compared, at least {needed()} decide"
            return "undecided", f"{few}: ask more"
        return None


def _kinds(server: Passes, against: Passes) -> list[str]:
    """Return what both were asked for: "reference", "answer"."""
    return [kind for kind in against.first if kind in server.first]


def _unlike(index: int, kind: str, against: Sequence[Position], server: Sequence[Position]) -> str:
    """Return why the positions are of different texts; own answers may differ, reference answers may not."""
    ours, theirs = ([p.token for p in positions] for positions in (server, against))
    if kind != "reference" or ours == theirs:
        return ""
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    return (
        f"the reference answer of question {index} is other tokens for the two servers, from place {at} on "
        f"({ours[at : at + 3]} and {theirs[at : at + 3]}): they must serve the same model with the same tokenizer"
    )


def _worst(part: Gsm8kLogprobs) -> str:
    if not part.worst:
        return ""
    one = part.worst[0]
    return f"; furthest at {one.token!r} of question {one.index}: {one.likeliest!r} here, {one.likeliest_against!r} there"


async def compare_logprobs(
    server: Source,
    against: Source,
    questions: Sequence[Question],
    *,
    allowed: float = ALLOWED,
    whole: bool = False,
) -> LogprobComparison:
    """Compare a server with another one.

    Args:
        server: what is judged.
        against: what it is compared with, and whose own noise is allowed.
        questions: in the order to ask; QUESTIONS of them are enough.
        allowed: nats per token that count as none: more for unlike precisions, such as FP4 with BF16.
        whole: ask all questions, also where fewer decide.

    Returns:
        The comparison; `decision()` and `part()` are what a run takes from it.
    """
    prepared = await asyncio.gather(server.prepare(questions[0]), against.prepare(questions[0]))
    found = LogprobComparison(allowed, len(questions), *prepared)
    if prepared[0].given.keys() & prepared[1].given.keys():
        await _ask(found, server, against, questions, whole=whole)
        if found.tested().in_a_few and not found.decided:
            found.again = LogprobComparison(allowed, len(questions), *prepared)
            await _ask(found.again, server, against, questions, whole=True)
    return found


async def _ask(
    found: LogprobComparison, server: Source, against: Source, questions: Sequence[Question], *, whole: bool
) -> None:
    """Ask block by block, until the questions so far decide or all are asked."""
    for start in range(0, len(questions), BLOCK):
        block = questions[start : start + BLOCK]
        ours, theirs = await asyncio.gather(server.passes(block), against.passes(block))
        for question in block:
            found.add(question.index, ours[question.index], theirs[question.index])
        if found.decided and not whole:
            return

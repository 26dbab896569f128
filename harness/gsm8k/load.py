"""Does a right answer depend on how many requests are in flight? The plan of the sweep, its tests and its verdict.

The same questions are asked alone, 8, 32 and 128 at a time; what the run itself asked at its own concurrency is one of
these sizes. Nothing here knows the server: `Sweep.run` is given a function that asks.

Both tests hold for every model, however often its answers change by chance: where the size does not matter, a question's
answers at two sizes are two draws of one coin. The error of all of them together is `SWEEP_ERROR`.

* Waves: pairs of sizes by `sign_e_value` on `TARGETS` questions; while a pair looks suspicious, as many more are asked.
* Alone: six questions that were right in the run are asked one by one, until too few are left to find anything. If four
  or more are wrong, all six are asked `AGAIN` times more as the run asked them. Of a question's answers, w of them wrong,
  the one given alone is wrong by chance with probability w / (AGAIN + 1): the exact test of stratified 2 x 2 tables
  (Mehta, Patel and Gray 1985). Where the run's answers are wrong, the same with right and wrong exchanged.

A difference of two sizes counts only if the one that was asked first still answers as it did: otherwise time made it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from harness.gsm8k.sequential import sign_e_value
from harness.records.parts.gsm8k import Decision

SIZES = (1, 8, 32, 128)
TARGETS = 24
STAGES = 4
"""Times that `TARGETS` questions are asked, where the first ones leave a suspicion."""
SUSPICIOUS = 4.0
"""e-value from which more questions are asked: that of four questions lost and none gained."""
ALONE, CHANGED = 6, 4
AGAIN = 6
"""Times that the questions asked alone are asked again at the run's own load: in two goes, three copies of each."""
SWEEP_ERROR = 1e-3
ALONE_ERROR = (1 / (AGAIN + 1)) ** CHANGED

Probe = dict[str, Any]
Right = dict[int, bool]
"""Index of a question to whether its answer was right; questions without an answer are left out."""
Ask = Callable[[int, Sequence[int]], Awaitable[list[bool | None]]]
"""Asks questions, by their index, so many at a time; None is a question without an answer."""


@dataclass(frozen=True)
class Compared:
    """Two sizes on the questions answered at both; `lost` are right at the first and wrong at the second."""

    sizes: tuple[int, int]
    compared: int
    lost: int
    gained: int

    @property
    def e(self) -> float:
        """The evidence that the size matters."""
        return sign_e_value(self.lost, self.gained)


@dataclass
class Sweep:
    """One sweep. `first` are the run's own answers in the order asked, with `own` requests in flight.

    What is found is kept as it comes, so that a sweep that is cut short still has a result.
    """

    own: int
    first: Mapping[int, bool]
    answers: dict[int, Right] = field(init=False)
    asked: dict[int, int] = field(default_factory=dict)
    finding: Probe | None = None
    complete: bool = False

    def __post_init__(self) -> None:
        self._targets = list(self.first)[:TARGETS]
        self.answers = {self.own: {index: self.first[index] for index in self._targets}}

    @property
    def possible(self) -> bool:
        """Whether the run has as many answers as the tests need."""
        return len(self._targets) == TARGETS

    async def run(self, ask: Ask, *, waves: bool = True, dead: bool = False) -> None:
        """Ask; without `waves` alone only. Of a dead run's server small loads are asked first, and no more than needed."""
        if waves:
            await self._first_wave(ask, dead=dead)
        if self.own > 1:
            await self._alone(ask)
        if waves:
            await self._waves(ask)
        self.complete = True

    async def _at(self, ask: Ask, size: int, targets: Sequence[int]) -> Right:
        right = _answered(targets, await ask(size, targets))
        self.asked[size] = self.asked.get(size, 0) + len(targets)
        self.answers.setdefault(size, {}).update(right)
        return right

    async def _alone(self, ask: Ask) -> None:
        """Ask one by one, until the questions that are left cannot change what is found."""
        in_run = sum(self.first[index] for index in self._targets) >= ALONE
        chosen = [index for index in self._targets if self.first[index] == in_run][:ALONE]
        changed = 0
        for place, index in enumerate(chosen):
            found = await self._at(ask, 1, [index])
            changed += found.get(index, in_run) != in_run
            if changed + len(chosen) - place - 1 < CHANGED:
                return
        if self.finding is not None:
            return
        copies = chosen * (AGAIN // 2)
        again = [*await ask(self.own, copies), *await ask(self.own, copies)]
        p = _alone_p(self.answers[1], list(zip(copies * 2, again, strict=True)), in_run=in_run)
        if p <= ALONE_ERROR * (1 + 1e-9):
            sizes = (self.own, 1) if in_run else (1, self.own)
            self.finding = _found("load", Compared(sizes, len(self.answers[1]), changed, 0))

    @property
    def _sizes(self) -> list[int]:
        return sorted({*SIZES[1:], self.own})

    async def _first_wave(self, ask: Ask, *, dead: bool) -> None:
        """Ask at the smallest size of a wave, in a dead run only once where not one answer is right."""
        size = self._sizes[0]
        if size == self.own:
            return
        few = self._targets[:size]
        if dead and not any((await self._at(ask, size, few)).values()):
            return
        await self._at(ask, size, self._targets[size if dead else 0 :])
        await self._judge(ask)

    async def _waves(self, ask: Ask) -> None:
        """Ask at the other sizes; then more at those that look different, until they are or no longer do."""
        wanted = set(self._sizes)
        for stage in range(STAGES):
            new = list(self.first)[stage * TARGETS : (stage + 1) * TARGETS]
            self.answers[self.own].update({index: self.first[index] for index in new})
            for size in sorted(wanted):
                if size != self.own and not (stage == 0 and size in self.answers):
                    await self._at(ask, size, new)
                    await self._judge(ask)
            wanted = {size for pair in self._pairs() if pair.e >= SUSPICIOUS for size in pair.sizes}
            if self.finding is not None or not wanted:
                return

    def _pairs(self) -> list[Compared]:
        asked = [size for size in self._sizes if size in self.answers]
        return [_compare((a, b), self.answers[a], self.answers[b]) for a, b in combinations(asked, 2)]

    async def _judge(self, ask: Ask) -> None:
        """Find the first pair of sizes that differ, and ask again at the size that was asked earlier.

        If it answers as before, the load makes the difference; if it answers as the later one, the time that has passed.
        """
        if self.finding is not None:
            return
        needed = len(list(combinations(self._sizes, 2))) / (SWEEP_ERROR - ALONE_ERROR)
        worst = max(self._pairs(), key=lambda pair: pair.e)
        if worst.e < needed:
            return
        asked = list(self.answers)  # in the order in which they were asked first
        early, late = sorted(worst.sizes, key=asked.index)
        sign = 1 if (worst.lost > worst.gained) == (worst.sizes == (early, late)) else -1
        targets = [index for index in self.answers[early] if index in self.answers[late]][-TARGETS:]
        again = _answered(targets, await ask(early, targets))
        before = {index: self.answers[early][index] for index in targets}
        then = _compare((early, late), before, self.answers[late])
        now = _compare((early, late), again, self.answers[late])
        # A third of it is enough: of a half dead server another half is right each time.
        still = 3 * sign * (now.lost - now.gained) >= max(1, sign * (then.lost - then.gained))
        self.finding = (
            _found("load", worst) if still else _found("time", _compare((early, early), before, again))
        )

    def as_json(self) -> Probe:
        """Return what the record holds: right answers by size, the pairs of sizes, and what was found."""
        sizes = sorted(self.answers)
        return {
            "ran": True,
            "complete": self.complete,
            "own": self.own,
            "sizes": [
                {
                    "size": size,
                    "asked": self.asked.get(size, len(self.answers[size])),
                    "answered": len(self.answers[size]),
                    "right": sum(self.answers[size].values()),
                }
                for size in sizes
            ],
            "pairs": [
                {"sizes": list(p.sizes), "compared": p.compared, "lost": p.lost, "gained": p.gained, "e": p.e}
                for p in self._pairs()
            ],
            "finding": self.finding,
        }


def _found(kind: str, pair: Compared) -> Probe:
    """Return what the record holds of a difference: the better size first."""
    if pair.lost >= pair.gained:
        return {
            "kind": kind,
            "sizes": [*pair.sizes],
            "compared": pair.compared,
            "lost": pair.lost,
            "gained": pair.gained,
        }
    better = Compared((pair.sizes[1], pair.sizes[0]), pair.compared, pair.gained, pair.lost)
    return _found(kind, better)


def _answered(targets: Sequence[int], right: Sequence[bool | None]) -> Right:
    return {index: found for index, found in zip(targets, right, strict=True) if found is not None}


def _alone_p(alone: Right, again: Sequence[tuple[int, bool | None]], *, in_run: bool) -> float:
    """Return the chance that so many questions change alone, given how often each has changed in all."""
    chances = []
    for index, found in alone.items():
        answers = [right for other, right in again if other == index and right is not None]
        changed = [right != in_run for right in (found, *answers)]
        chances.append(sum(changed) / len(changed))
    tail = [1.0]  # by number of questions that change
    for chance in chances:
        tail = [
            stays * (1 - chance) + changes * chance
            for stays, changes in zip([*tail, 0.0], [0.0, *tail], strict=True)
        ]
    return sum(tail[sum(found != in_run for found in alone.values()) :])


def _compare(sizes: tuple[int, int], first: Right, second: Right) -> Compared:
    both = first.keys() & second.keys()
    lost = sum(first[index] and not second[index] for index in both)
    gained = sum(second[index] and not first[index] for index in both)
    return Compared(sizes, len(both), lost, gained)


def in_words(probe: Mapping[str, Any]) -> str:
    """Return the sweep's right answers by size: "alone 2 of 2 right, 8 at a time 24 of 24, ..."."""
    parts: list[str] = []
    for entry in probe.get("sizes", []):
        name = "alone" if entry["size"] == 1 else f"{entry['size']} at a time"
        refused = (
            ""
            if entry["answered"] == entry["asked"]
            else f" ({entry['asked'] - entry['answered']} unanswered)"
        )
        parts.append(f"{name} {entry['right']} of {entry['answered']}{'' if parts else ' right'}{refused}")
    return ", ".join(parts)


def load_decision(probe: Mapping[str, Any] | None) -> Decision | None:
    """Judge a sweep by its record; None where it did not run to an end and found nothing."""
    if not probe or not probe.get("ran"):
        return None
    found, details = probe.get("finding"), dict(probe)
    if found is None:
        return (
            Decision("PASS", "", f"no difference: {in_words(probe)}", details) if probe["complete"] else None
        )
    good, bad = found["sizes"]
    evidence = f"{found['lost']} lost, {found['gained']} gained of {found['compared']} asked both times"
    if found["kind"] == "load":
        where = "alone" if bad == 1 else f"with {bad} requests in flight"
        return Decision("FAIL", "load", f"answers are wrong {where}: {in_words(probe)} ({evidence})", details)
    changed = (
        f"the same questions at the same load ({good} at a time) are answered otherwise later: {evidence}"
    )
    return Decision(
        "FAIL", "degenerate", f"{changed}; time, the number of requests or a cache is the cause", details
    )


def with_load(decision: Decision, load: Decision | None) -> Decision:
    """Return a run's verdict with that of the sweep: the load is the cause of what else is wrong.

    Infrastructure stays: nothing behind it was measured.
    """
    if load is None or load.word != "FAIL" or decision.qualifier == "infra":
        return decision
    if load.qualifier != "load" and decision.word == "FAIL":
        return Decision("FAIL", decision.qualifier, f"{decision.reason}; {load.reason}", decision.details)
    own = load.details["own"]
    return Decision(
        "FAIL", load.qualifier, f"{load.reason}; the run itself, at {own}: {decision.reason}", load.details
    )

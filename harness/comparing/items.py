"""Everything in a record that has a verdict of its own, under a key by which two records can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from harness.records.changes import Direction
from harness.records.parts.mutants import FalseAlarm
from harness.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.records.parts.canary import CanaryLine
    from harness.records.parts.gsm8k import Gsm8kRun
    from harness.records.parts.mutants import MutantsRun
    from harness.records.record import RunRecord

SKIPPED = "SKIPPED"
NOT_RUN = "not run"


class Rank(IntEnum):
    """What the word of a part means for a comparison.

    LOST was asked for and not judged (no power, skipped, could not run); ASIDE stands outside of the verdict.
    """

    GOOD = 0
    LOST = 1
    BAD = 2
    ASIDE = 3


@dataclass(frozen=True)
class Item:
    """One verdict: a rule on a candidate, a canary run, a planted fault."""

    part: str
    subject: str
    candidate: str
    word: str
    rank: Rank
    reason: str = ""
    reproduce: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same thing in two records."""
        return self.part, self.subject, self.candidate


_GOOD_IS_PASS = {"PASS": Rank.GOOD, "NOT DEAD": Rank.GOOD, "FAIL": Rank.BAD}
_GOOD_IS_FAIL = {"PASS": Rank.BAD, "NOT DEAD": Rank.BAD, "FAIL": Rank.GOOD}
_STATUS = {"killed": Rank.GOOD, "survived": Rank.BAD, "not planted": Rank.ASIDE}


def direction(before: Item, after: Item) -> Direction:
    """Return where a change of rank leads.

    A judgement that was lost is a regression, a gate that rots does so silently. FAIL to not judged is no improvement.
    """
    ranks = before.rank, after.rank
    if before.rank is after.rank:
        return Direction.SAME if before.word == after.word else Direction.CHANGED
    if Rank.ASIDE in ranks or ranks == (Rank.BAD, Rank.LOST):
        return Direction.CHANGED
    return Direction.REGRESSION if after.rank > before.rank else Direction.IMPROVEMENT


def items(record: RunRecord) -> list[Item]:
    """Return every verdict of a record but the run's own and GSM8K's, which is compared by task."""
    found = [*_candidates(record), *_rules(record), *_canary(record)]
    mutants = record.mutants_run
    return found if mutants is None else [*found, *_mutants(mutants)]


def task_item(run: Gsm8kRun, label: str) -> Item:
    """Return the verdict of a GSM8K run, under its task and a label for the model."""
    return Item(
        "gsm8k", run.task_name, label, run.label, _GOOD_IS_PASS.get(run.verdict, Rank.LOST), run.reason
    )


def _candidates(record: RunRecord) -> Iterator[Item]:
    for candidate in record.candidates:
        word, rank = (
            ("ran", Rank.GOOD)
            if candidate.ran
            else ("could not run", Rank.LOST)
            if candidate.requested
            else (NOT_RUN, Rank.ASIDE)
        )
        yield Item("candidates", "runs", candidate.name, word, rank, candidate.reason)


def _rules(record: RunRecord) -> Iterator[Item]:
    seen = set()
    for rule in record.rules:
        seen.add((rule.rule, rule.candidate))
        if rule.skipped and not rule.examples:
            yield Item("rules", rule.rule, rule.candidate, SKIPPED, Rank.LOST, rule.skipped)
            continue
        first = next((f for f in rule.failures if f.kind != "known"), None)
        known = " (known failures)" if rule.verdict is Verdict.PASS and rule.failures else ""
        yield Item(
            "rules",
            rule.rule,
            rule.candidate,
            rule.verdict.value + known,
            _GOOD_IS_PASS.get(rule.verdict.value, Rank.LOST),
            rule.reason or (first.message if first else ""),
            first.reproduce if first else "",
        )
    # A rule that its candidate has no stage for leaves only "RULE on CANDIDATE" among the skips.
    for skip in record.skips:
        for candidate in record.candidates:
            name = skip.what.removesuffix(f" on {candidate.name}")
            if name not in {skip.what, "canary"} and (name, candidate.name) not in seen:
                yield Item("rules", name, candidate.name, SKIPPED, Rank.LOST, skip.reason)


def _canary(record: RunRecord) -> Iterator[Item]:
    canary = record.canary_part
    if canary is None:
        return
    for run in canary.runs:
        rank = _GOOD_IS_PASS.get(run.verdict, Rank.LOST)
        yield Item("canary", "word problems", run.candidate, run.label, rank, run.reason, run.reproduce)
    for run in canary.controls:
        rank = _GOOD_IS_FAIL.get(run.verdict, Rank.LOST)
        yield Item("canary control", "must fail", run.candidate, run.label, rank, run.reason, run.reproduce)
    yield from (_line(line) for line in canary.table)


def _line(line: CanaryLine) -> Item:
    word = f"{line.verdict} ({line.qualifier})" if line.qualifier else line.verdict or "error"
    if line.kind == "fault":
        # What a fault does to accuracy is a measurement: only those that are known to collapse models must be seen.
        collapse = line.facts is not None and line.facts.effect == "collapse"
        rank = _GOOD_IS_FAIL.get(line.verdict, Rank.LOST) if collapse else Rank.ASIDE
        return Item("canary fault", line.name, line.candidate, word, rank, line.error)
    rank = _GOOD_IS_PASS.get(line.verdict, Rank.LOST)
    return Item("canary", line.name, line.candidate, word, rank, line.error)


def _mutants(mutants: MutantsRun) -> Iterator[Item]:
    for fault in mutants.faults:
        rank = _STATUS.get(fault.status, Rank.LOST)
        yield Item(
            "mutants",
            fault.name,
            mutants.candidate,
            fault.status,
            rank,
            fault.reason or fault.title,
            fault.minimal.command if fault.minimal else "",
        )
    if mutants.controls is not None:
        alarms = mutants.controls.false_alarms
        first = alarms[0] if alarms else FalseAlarm()
        rank = Rank.BAD if alarms else Rank.GOOD
        words = f"{len(alarms)} false alarms"
        yield Item("controls", "right candidates", "", words, rank, first.message, first.reproduce)
    for check in mutants.self_test.broken if mutants.self_test else []:
        word, rank = ("detected", Rank.GOOD) if check.detected else ("not detected", Rank.BAD)
        yield Item("self-test", check.name, "", word, rank, check.how)

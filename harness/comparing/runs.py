"""Compare two runs: `compare`. Verdicts, accuracies (paired), error margins, coverage, timings, environment.

Each side is one record or several (a CI run leaves one for each part); where several judged the same thing, the newest
counts. Only verdicts and accuracies can be regressions. Margins within the bound, timings and the environment are
shown and never judged: any line drawn through them would be a tolerance that someone chose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.comparing.accuracy import compare_accuracy
from harness.comparing.environment import compare_environment
from harness.comparing.items import Item, Rank, direction, items, task_item
from harness.comparing.timings import compare_timings
from harness.records.changes import (
    AccuracyChange,
    CoverageChange,
    Direction,
    MarginChange,
    OneSided,
    RecordComparison,
    RunIdentity,
    VerdictChange,
)
from harness.records.ways import has_interval
from harness.verdict import Verdict

if TYPE_CHECKING:
    from harness.records.parts.gsm8k import Gsm8kRun
    from harness.records.record import RuleResult, RunRecord

COVERAGE_FACTOR = 2
"""Coverage is listed where a rule compared this many times fewer or more elements: chosen, for display only."""

# Options of `harness check` that choose the problems, beside profile and seed.
_PROBLEM_OPTIONS = ("--shapes", "--ep", "--problem", "--max-seconds")
_ORDER = {d: i for i, d in enumerate((Direction.REGRESSION, Direction.IMPROVEMENT, Direction.CHANGED))}


@dataclass(frozen=True)
class Run:
    """One record with its name for people and the link to its report."""

    name: str
    record: RunRecord
    link: str = ""


def compare(before: Sequence[Run], after: Sequence[Run]) -> RecordComparison:
    """Return what changed between two sides, each of one or more records, oldest first.

    Raises:
        RecordError: a part's field is damaged; the message names it.
    """
    sides = [run.record for run in before], [run.record for run in after]
    then, now = _newest(sides[0]), _newest(sides[1])
    accuracies, tasks, task_sides = _tasks(*sides)
    accuracies += _canary_accuracies(*sides)
    pairs = [(before_item, now[key]) for key, before_item in then.items() if key in now]
    verdicts, still_bad, unchanged, compared = _verdicts(pairs + tasks)
    if compared and len(before) == len(after) == 1:
        verdicts += _whole_run(sides[0][0], sides[1][0], [*verdicts, *accuracies])
    verdicts.sort(key=lambda v: _ORDER[v.direction])
    accuracies.sort(key=lambda a: (_ORDER.get(a.direction, len(_ORDER)), a.difference))
    margins, margins_same = _margins(*sides)
    timings, timings_same = compare_timings(*sides)
    environment, environment_same = compare_environment(*sides)
    return RecordComparison(
        before=[_identity(run) for run in before],
        after=[_identity(run) for run in after],
        verdicts=verdicts,
        still_bad=still_bad,
        unchanged=unchanged,
        accuracies=accuracies,
        margins=margins,
        margins_same=margins_same,
        coverage=_coverage(*sides),
        timings=timings,
        timings_same=timings_same,
        environment=environment,
        environment_same=environment_same,
        one_sided=_one_sided(then, now) + task_sides,
        compared=compared,
    )


def compare_records(before: RunRecord, after: RunRecord) -> RecordComparison:
    """Return what changed between two records; `exit_code` of it is 0 without a regression, 1 with one, 2 for no overlap."""
    return compare([Run("before", before)], [Run("after", after)])


def newest_pair(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Return the newest run and the newest before it that has something in common with it; None if none has."""
    for earlier in reversed(runs[:-1]):
        if compare([earlier], [runs[-1]]).compared:
            return earlier, runs[-1]
    return None


def _identity(run: Run) -> RunIdentity:
    r = run.record
    return RunIdentity(run.name, r.run_id, r.created, r.verdict, r.reason, run.link)


def _newest(records: Sequence[RunRecord]) -> dict[tuple[str, str, str], Item]:
    return {item.key: item for record in records for item in items(record)}


def _verdicts(
    pairs: Sequence[tuple[Item, Item]],
) -> tuple[list[VerdictChange], list[VerdictChange], dict[str, dict[str, int]], int]:
    """Return what changed, what is bad in both, how many are the same by part and word, and how many were compared."""
    changed, still_bad = [], []
    same: dict[str, Counter[str]] = {}
    compared = 0
    for before, after in pairs:
        counts = after.part != "candidates"
        compared += counts and bool({before.rank, after.rank} & {Rank.GOOD, Rank.BAD})
        change = _change(before, after, direction(before, after))
        if change.direction is not Direction.SAME:
            changed.append(change)
            continue
        if counts:
            same.setdefault(after.part, Counter())[after.word] += 1
        if after.rank is Rank.BAD:
            still_bad.append(change)
    return changed, still_bad, {part: dict(words) for part, words in same.items()}, compared


def _change(before: Item, after: Item, where: Direction) -> VerdictChange:
    worse = before if where is Direction.IMPROVEMENT else after
    return VerdictChange(
        *after.key[:2], after.candidate, where, before.word, after.word, worse.reason, worse.reproduce
    )


def _whole_run(
    before: RunRecord, after: RunRecord, found: Sequence[VerdictChange | AccuracyChange]
) -> list[VerdictChange]:
    """Return the run's own verdict where it fell and nothing else says why: traps drawn too seldom, an internal error."""
    if before.verdict is not Verdict.PASS or after.verdict is Verdict.PASS:
        return []
    if any(change.direction is Direction.REGRESSION for change in found):
        return []
    words = before.verdict.value, after.verdict.value
    # The candidate that the run fails for, so that a reader knows where to look.
    bad = [item for item in items(after) if item.rank is Rank.BAD]
    who, command = (bad[0].candidate, bad[0].reproduce) if bad else ("", "")
    return [VerdictChange("run", "verdict", who, Direction.REGRESSION, *words, after.reason, command)]


def _one_sided(
    then: dict[tuple[str, str, str], Item], now: dict[tuple[str, str, str], Item]
) -> list[OneSided]:
    found = [OneSided("before", *key, item.word) for key, item in then.items() if key not in now]
    found += [OneSided("after", *key, item.word) for key, item in now.items() if key not in then]
    return [side for side in found if side.part != "candidates"]


def _tasks(
    before: Sequence[RunRecord], after: Sequence[RunRecord]
) -> tuple[list[AccuracyChange], list[tuple[Item, Item]], list[OneSided]]:
    """Compare GSM8K runs by task; by task and model where a side has several models of one task."""
    then, now = _by_task(before), _by_task(after)
    pairs, sides = [], []
    for task in dict.fromkeys([*then, *now]):
        old, new = then.get(task, {}), now.get(task, {})
        if len(old) == len(new) == 1:
            pairs.append((task, next(iter(old.values())), next(iter(new.values()))))
            continue
        pairs += [(task, old[model], new[model]) for model in old if model in new]
        for side, mine, other in (("before", old, new), ("after", new, old)):
            sides += [
                OneSided(side, "gsm8k", task, m, run.label) for m, run in mine.items() if m not in other
            ]
    accuracies, verdicts = [], []
    for task, old_run, new_run in pairs:
        label = " → ".join(dict.fromkeys([old_run.model, new_run.model]))
        accuracy = compare_accuracy("gsm8k", task, label, old_run, new_run)
        accuracies += [accuracy] if accuracy else []
        verdicts.append((task_item(old_run, label), task_item(new_run, label)))
    return accuracies, verdicts, sides


def _by_task(records: Sequence[RunRecord]) -> dict[str, dict[str, Gsm8kRun]]:
    found: dict[str, dict[str, Gsm8kRun]] = {}
    for record in records:
        run = record.gsm8k_run
        if run is not None:
            found.setdefault(run.task_name, {})[run.model] = run
    return found


def _canary_accuracies(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> list[AccuracyChange]:
    runs = [
        {run.candidate: run for r in side if (canary := r.canary_part) for run in canary.runs}
        for side in (before, after)
    ]
    changes = (
        compare_accuracy("canary", "word problems", name, runs[0][name], runs[1][name])
        for name in runs[0]
        if name in runs[1]
    )
    return [change for change in changes if change is not None]


def _rules(records: Sequence[RunRecord]) -> dict[tuple[str, str], tuple[RuleResult, RunRecord]]:
    return {
        (rule.rule, rule.candidate): (rule, record)
        for record in records
        for rule in record.rules
        if rule.examples
    }


def _margins(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> tuple[list[MarginChange], int]:
    then, now = _rules(before), _rules(after)
    found, same = [], 0
    for key, (old, old_record) in then.items():
        if key not in now:
            continue
        new, new_record = now[key]
        if old.worst_ratio is None or new.worst_ratio is None or not has_interval(new.judged):
            continue
        if old.worst_ratio == new.worst_ratio:
            same += 1
            continue
        factor = new.worst_ratio / old.worst_ratio if old.worst_ratio else None
        alike = old.examples == new.examples and _same_problems(old_record, new_record)
        found.append(MarginChange(*key, old.worst_ratio, new.worst_ratio, factor, alike, new.worst_problem))
    found.sort(key=lambda m: (m.after <= 1, -(m.factor if m.factor is not None else float("inf"))))
    return found, same


def _same_problems(a: RunRecord, b: RunRecord) -> bool:
    """Whether two runs drew the same problems: hypothesis draws them from the seed alone."""

    def draw(record: RunRecord) -> tuple[object, ...]:
        words = [part for word in record.command for part in word.split("=", 1)]
        chosen = [(o, words[i + 1 : i + 2]) for i, o in enumerate(words) if o in _PROBLEM_OPTIONS]
        versions = record.harness_version, record.environment.packages.get("hypothesis")
        return record.profile, record.seed, *versions, sorted(chosen)

    return draw(a) == draw(b)


def _coverage(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> list[CoverageChange]:
    then, now = _rules(before), _rules(after)
    found = [
        CoverageChange(*key, old.compared, now[key][0].compared)
        for key, (old, _) in then.items()
        if key in now
    ]
    far = [c for c in found if max(c.before, c.after) >= COVERAGE_FACTOR * max(1, min(c.before, c.after))]
    return sorted(far, key=lambda c: c.after / max(1, c.before))

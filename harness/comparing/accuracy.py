"""Two accuracies: paired on the same questions where both runs hold them, by their intervals otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.gsm8k.counts import METRICS
from harness.gsm8k.judgement import CONFIDENCE, MAX_DROP
from harness.gsm8k.paired import Pairing, is_worse, judge_pairing, pair
from harness.gsm8k.setups import differences, setup_of_run
from harness.gsm8k.statistics import Interval, mcnemar_mid_p
from harness.records.changes import AccuracyChange, Direction, Estimate
from harness.records.from_json import RecordError
from harness.verdict import UsageError, Verdict

if TYPE_CHECKING:
    from harness.records.parts.gsm8k import Gsm8kRun, Gsm8kSample

CHANCE = (1 - CONFIDENCE) / 2


def compare_accuracy(
    part: str, subject: str, candidate: str, before: Gsm8kRun, after: Gsm8kRun
) -> AccuracyChange | None:
    """Return how an accuracy changed; None where one of the runs has none.

    A regression is what `harness gsm8k --baseline` calls FAIL: a drop that is shown to exceed MAX_DROP. An improvement is a
    gain that chance does not explain. Two runs that did not ask the same in the same way are shown and never judged.

    Raises:
        RecordError: a sample without a field that a comparison needs.
    """
    metric = after.metric if after.metric in METRICS else "strict"
    estimates = _estimate(before, metric), _estimate(after, metric)
    if estimates[0] is None or estimates[1] is None:
        return None
    first, second = estimates[0], estimates[1]
    if unlike := differences(setup_of_run(after), setup_of_run(before)):
        why = f"the setups are unlike: {'; '.join(unlike)}"
        found_apart = _unpaired(part, subject, candidate, metric, first, second, why)
        same = found_apart.direction is Direction.SAME
        return replace(found_apart, direction=Direction.SAME if same else Direction.CHANGED)
    why = ""
    found: Pairing | None = None
    try:
        found = pair(_samples(after, metric), _samples(before, metric), metric=metric, confidence=CONFIDENCE)
    except UsageError:
        why = "the questions differ: other data"
    if found is None:
        return _unpaired(part, subject, candidate, metric, first, second, why or _no_pairs(before, after))
    decision = judge_pairing(found, MAX_DROP, metric, CONFIDENCE)
    return AccuracyChange(
        part=part,
        subject=subject,
        candidate=candidate,
        metric=metric,
        direction=_paired_direction(found, failed=decision.word == Verdict.FAIL),
        before=first,
        after=second,
        difference=found.difference,
        low=found.interval.low,
        high=found.interval.high,
        paired=True,
        questions=found.n,
        lost=found.lost,
        gained=found.gained,
        p=found.p,
        seen=found.smallest_drop,
        words=decision.reason,
    )


def _paired_direction(found: Pairing, *, failed: bool) -> Direction:
    if failed:
        return Direction.REGRESSION
    better = (
        found.interval.low > 0 if found.noise_measured else mcnemar_mid_p(found.gained, found.lost) < CHANCE
    )
    if better:
        return Direction.IMPROVEMENT
    return Direction.CHANGED if is_worse(found, CONFIDENCE) else Direction.SAME


def difference_interval(before: Estimate, after: Estimate) -> Interval:
    """Return Newcombe's interval of after - before for two independent shares, from their Wilson intervals.

    Source: Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    d = after.share - before.share
    down = math.hypot(after.share - after.low, before.high - before.share)
    up = math.hypot(after.high - after.share, before.share - before.low)
    return Interval(max(-1.0, d - down), min(1.0, d + up))


def _unpaired(
    part: str, subject: str, candidate: str, metric: str, before: Estimate, after: Estimate, why: str
) -> AccuracyChange:
    interval = difference_interval(before, after)
    difference = after.share - before.share
    if interval.high < 0:
        direction = Direction.REGRESSION if interval.high < -MAX_DROP else Direction.CHANGED
    else:
        direction = Direction.IMPROVEMENT if interval.low > 0 else Direction.SAME
    points = f"{100 * difference:+.2f} points ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
    words = f"{points}, not paired: {why}"
    return AccuracyChange(
        part, subject, candidate, metric, direction, before, after, difference, interval.low, interval.high,
        paired=False, questions=0, words=words, why_not_paired=why,
    )  # fmt: skip


def _no_pairs(before: Gsm8kRun, after: Gsm8kRun) -> str:
    missing = [name for name, run in (("before", before), ("after", after)) if not run.samples]
    if missing:
        return f"the record {' and '.join(missing)} holds no questions"
    return "no question was answered in both runs"


def _estimate(run: Gsm8kRun, metric: str) -> Estimate | None:
    share = run.accuracy_by(metric)
    ends = run.intervals.get(metric) or (run.interval if metric == "strict" else None)
    if share is None or ends is None or len(ends) != 2:
        return None
    if not (0 <= ends[0] <= share <= ends[1] <= 1):
        raise RecordError(f"record.gsm8k.accuracy_{metric} must lie in its interval {ends}, got {share}")
    return Estimate(share, ends[0], ends[1], run.answered)


def _samples(run: Gsm8kRun, metric: str) -> list[Gsm8kSample]:
    for number, sample in enumerate(run.samples):
        index = sample.get("index")
        if not isinstance(index, int):
            raise RecordError(f"record.gsm8k.samples[{number}].index must be int, got {index!r:.80}")
        if sample.get("error") is None and not {metric, "class"} <= sample.keys():
            raise RecordError(f"record.gsm8k.samples[{number}] must have {metric} and class")
    return run.samples

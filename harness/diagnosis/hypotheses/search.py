"""In which order hypotheses are tested, and when the search ends: screened on a few rows, the likely ones in full, parts last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from harness.diagnosis.cases.case import SMALL, Case
from harness.diagnosis.cases.observation import MASKED_MOE, Observed
from harness.diagnosis.hypotheses.fingerprints import fitted, order
from harness.diagnosis.hypotheses.hypothesis import Hypothesis, hypotheses
from harness.diagnosis.hypotheses.layers import reading_other_rows, score_layer
from harness.diagnosis.hypotheses.opaque_parts import has_blocks, score_blocks, score_weight_rows
from harness.diagnosis.hypotheses.planted_layer import INNER
from harness.diagnosis.hypotheses.stage_calls import Score, score
from harness.diagnosis.hypotheses.weight_rows import has_weight_rows
from harness.diagnosis.telling.rank import Explanation, ranked

Test = Callable[[list[Case], list[Observed], Hypothesis], Score | None]
PartTest = Callable[[list[Case], Hypothesis], Score | None]
_CONFIRMED = 8
_MOST_CONFIRMED = 32
_AFTER_FOUND = 3
_FEW_ROWS = 8  # wrong rows of a call, as a race leaves them


def explain(
    cases: list[Case],
    calls: list[Observed],
    seconds: float,
    units: tuple[str, ...] = ("block", "row", "expert", "call"),
) -> list[Explanation]:
    """Return what explains the illegal elements of the cases, the best explanation first.

    Args:
        cases: calls with illegal elements.
        calls: all recorded calls, in order.
        seconds: after which no further hypothesis is tested.
        units: of the faults to try.
    """
    end = time.thread_time() + seconds
    stages = {case.call.stage for case in cases if bool(case.illegal.any())}
    tried = order(hypotheses(stages, units), cases)
    scores = _tested(tried, cases, calls, end)
    if not _covered(scores, cases):
        scores += _tested(fitted(tried, cases), cases, calls, end)
    return ranked(scores, cases)


def explain_layer(cases: list[Case], calls: list[Observed], seconds: float) -> list[Explanation]:
    """Return what explains the illegal elements of opaque layers, as `explain` does for single stages.

    Faults of whole rows come first, then those of some blocks, the nearest of them first; what a few rows do not show
    (values that come from other rows) comes last.
    """
    end = time.thread_time() + seconds
    tried = order(hypotheses((*INNER, MASKED_MOE), ("block", "row", "expert")), cases)
    screened = _screened(tried, cases, calls, end, score_layer)
    likely = _likely(screened)
    scores = _scores(likely, cases, calls, math.inf, score_layer)
    if not _told(scores, cases):
        scores += _scores(fitted(tried, cases), cases, calls, end, score_layer)
    if not _told(scores, cases):
        nearest_first = [s.hypothesis for s in screened]
        nearest_first += [h for h in tried if h not in nearest_first]
        scores += _part_scores([h for h in nearest_first if has_blocks(h)], cases, end, score_blocks)
    if not _told(scores, cases):
        scores += _part_scores([h for h in tried if has_weight_rows(h)], cases, end, score_weight_rows)
    if not _told(scores, cases):
        rest = reading_other_rows([h for h in tried if h not in likely], cases, end)
        scores += _scores(rest, cases, calls, end, score_layer)
    if not _told(scores, cases):
        scores += _scores(hypotheses(INNER, ("call",)), cases, calls, end, score_layer)  # many choices each
    return ranked(scores, cases)


def _part_scores(
    nearest_first: list[Hypothesis],
    cases: list[Case],
    end: float,
    test: PartTest,
) -> list[Score]:
    """Test faults that only some blocks, or rows of weights, have, until one explains everything, and a few after it."""
    scores: list[Score] = []
    more = _AFTER_FOUND
    for hypothesis in nearest_first:
        if time.thread_time() > end or not more:
            break
        if found := test(cases, hypothesis):
            scores.append(found)
        more -= _told(scores, cases)
    return scores


def _screened(
    tried: list[Hypothesis], cases: list[Case], calls: list[Observed], end: float, test: Test
) -> list[Score]:
    """Return the scores on a few failing rows, the best one first."""
    few = [case.screened() for case in cases if bool(case.illegal.any())]
    return sorted(_scores(tried, few, calls, end, test), key=Score.key, reverse=True)


def _likely(screened: list[Score]) -> list[Hypothesis]:
    """Return what is worth a test in full: the best few, and whatever explained as much of the few rows as the best one."""
    as_good = sum(s.share >= screened[0].share for s in screened) if screened and screened[0].share else 0
    return [s.hypothesis for s in screened[: min(max(_CONFIRMED, as_good), _MOST_CONFIRMED)]]


def _tested(
    tried: list[Hypothesis], cases: list[Case], calls: list[Observed], end: float, test: Test = score
) -> list[Score]:
    """Screen on a few rows, then test in full: the likely ones, or all where none of them explains everything."""
    if all(case.work() < SMALL for case in cases):
        return _scores(tried, cases, calls, end, test)
    # They take values from other rows and calls: a few rows do not show them.
    races = [h for h in tried if h.fault.unit == "call" and h.fault.category == "races"]
    screened = _screened([h for h in tried if h not in races], cases, calls, end, test)
    likely = _likely(screened)
    scores = _scores(likely, cases, calls, math.inf, test)
    if not _covered(scores, cases):
        rest = [h for h in tried if h not in likely and h not in races]
        rows = max(int(case.illegal.any(-1).any(-1).sum()) for case in cases)
        rest = races + rest if rows <= _FEW_ROWS else rest + races
        scores += _scores(rest, cases, calls, end, test)
    return scores


def _scores(
    tried: list[Hypothesis], cases: list[Case], calls: list[Observed], end: float, test: Test
) -> list[Score]:
    """Test hypotheses one by one until the time is over; return those that fit anything."""
    found = []
    by_chance: set[str] = set()
    for hypothesis in tried:
        if time.thread_time() > end:
            break
        if hypothesis.fault.name in by_chance:
            continue  # its strength is only how often it strikes
        tested = test(cases, calls, hypothesis)
        if tested is None:
            continue
        if tested.chosen and hypothesis.fault.unit == "call":
            by_chance.add(hypothesis.fault.name)
        if tested.near:
            found.append(tested)
    return found


def _covered(scores: list[Score], cases: list[Case]) -> bool:
    """Return whether every case is explained whole by one of the scores."""
    bad = [n for n, case in enumerate(cases) if bool(case.illegal.any())]
    return all(any(int(s.explained[n].sum()) == s.of[n] for s in scores if n in s.explained) for n in bad)


def _told(scores: list[Score], cases: list[Case]) -> bool:
    """Return whether every case is explained whole, and by more than NaN and zeros, which many faults cause alike."""
    return _covered(scores, cases) and any(
        bool((c.illegal & c.seen.isfinite() & (c.seen != 0)).any()) for c in cases
    )

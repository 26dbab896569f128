"""In which order hypotheses are tested, and when the search ends: screened on a few rows, the likely ones in full, parts last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.case import SMALL, CallCase
from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.observation import INNER, Observed
from harness.diagnosis.cases.views import any_differ
from harness.diagnosis.hypotheses.blocks import has_blocks, score_blocks
from harness.diagnosis.hypotheses.fingerprints import fitted, order
from harness.diagnosis.hypotheses.hypothesis import Hypothesis, hypotheses_in
from harness.diagnosis.hypotheses.layers import reading_other_rows, score_layers
from harness.diagnosis.hypotheses.score import Score
from harness.diagnosis.hypotheses.stage_calls import score_calls
from harness.diagnosis.hypotheses.weight_rows import has_weight_rows, score_weight_rows

AnyCase = TypeVar("AnyCase", bound=CallCase)
_EVERY_UNIT = ("block", "row", "expert", "call")
_CONFIRMED = 8
_MOST_CONFIRMED = 32
_AFTER_FOUND = 3
_FEW_ROWS = 8  # wrong rows of a call, as a race leaves them


@dataclass(frozen=True)
class _Search(Generic[AnyCase]):
    """What hypotheses are tested on, and how.

    Attributes:
        cases: calls, some of which have illegal elements.
        calls: all recorded calls, in order.
        end: thread time after which no further hypothesis is tested.
        test: of one hypothesis.
    """

    cases: list[AnyCase]
    calls: list[Observed]
    end: float
    test: Callable[[list[AnyCase], list[Observed], Hypothesis], Score | None]

    def scores(self, tried: list[Hypothesis]) -> list[Score]:
        """Test hypotheses one by one until the time is over; return those that fit anything."""
        found = []
        by_chance: set[str] = set()
        for hypothesis in tried:
            if time.thread_time() > self.end:
                break
            if hypothesis.fault.name in by_chance:
                continue  # its strength is only how often it strikes
            tested = self.test(self.cases, self.calls, hypothesis)
            if tested is None:
                continue
            if tested.chosen and hypothesis.fault.unit == "call":
                by_chance.add(hypothesis.fault.name)
            if tested.near:
                found.append(tested)
        return found

    def screened(self, tried: list[Hypothesis]) -> list[Score]:
        """Return the scores on a few failing rows, the best one first."""
        few = replace(self, cases=[case.screened() for case in self.cases if case.fails])
        return sorted(few.scores(tried), key=Score.key, reverse=True)

    def to_the_end(self, tried: list[Hypothesis]) -> list[Score]:
        """Test hypotheses whatever the time."""
        return replace(self, end=math.inf).scores(tried)


def search_calls(
    cases: list[CallCase], calls: list[Observed], seconds: float, earlier: Sequence[Observed] = ()
) -> list[Score]:
    """Return how well hypotheses explain the illegal elements of single stage calls.

    Args:
        cases: calls, some of which have illegal elements.
        calls: all recorded calls, in order.
        seconds: after which no further hypothesis is tested.
        earlier: first calls of the same process before those.
    """
    search = _Search(cases, calls, time.thread_time() + seconds, score_calls)
    stages = {case.call.stage for case in cases if case.fails}
    failing = [case.call.traits for case in cases if case.fails]
    tried = order(hypotheses_in(stages, _EVERY_UNIT, *failing), cases)
    remembering = [h for h in tried if h.fault.unit == "call"]
    scores = []
    if any_differ(
        calls
    ):  # the same call gave other bits: what strikes by chance is likely, and costs the most
        races = [h for h in tried if _is_race(h)]
        scores = replace(search, end=time.thread_time() + seconds / 2).scores(races)
        tried = [] if _covered(scores, cases) else [h for h in tried if h not in races]
    scores += _tested(tried, search)
    if earlier and not _covered(scores, cases):
        scores += replace(search, test=partial(score_calls, earlier=earlier)).scores(remembering)
    if not _covered(scores, cases):
        scores += _tested(fitted(tried, cases), search)
    return scores


def search_layers(
    cases: list[LayerCase], calls: list[Observed], seconds: float, likely_faults: Sequence[str] = ()
) -> list[Score]:
    """Return how well hypotheses explain the illegal elements of opaque layers, as `search_calls` does for single stages.

    Faults of whole rows come first, then those of some blocks, the nearest of them first; what a few rows do not show
    (values that come from other rows) comes last. `likely_faults` are names of faults that are tested in full at first.
    """
    search = _Search(cases, calls, time.thread_time() + seconds, score_layers)
    stage = cases[0].call.stage
    tried = order(hypotheses_in((*INNER, stage), ("block", "row", "expert"), cases[0].call.traits), cases)
    screened = search.screened(tried)
    likely = _likely(screened)
    likely += [h for h in tried if h.fault.name in likely_faults and h not in likely]
    scores = search.to_the_end(likely)
    if not _told(scores, cases):
        scores += search.scores(fitted(tried, cases))
    if stage == ROUTED:  # a token shows a sum of several experts' rows: parts of them are not told apart
        return scores
    if not _told(scores, cases):
        nearest_first = [s.hypothesis for s in screened]
        nearest_first += [h for h in tried if h not in nearest_first]
        scores += _part_scores([h for h in nearest_first if has_blocks(h)], search, score_blocks)
    if not _told(scores, cases):
        scores += _part_scores([h for h in tried if has_weight_rows(h)], search, score_weight_rows)
    if not _told(scores, cases):
        rest = [h for h in tried if h not in likely]
        scores += search.scores(reading_other_rows(rest, cases, search.end))
    if not _told(scores, cases):
        scores += search.scores(hypotheses_in(INNER, ("call",), cases[0].call.traits))  # many choices each
    return scores


def _tested(tried: list[Hypothesis], search: _Search[CallCase]) -> list[Score]:
    """Screen on a few rows, then test in full: the likely ones, or all where none of them explains everything."""
    if all(case.work() < SMALL for case in search.cases):
        return search.scores(tried)
    # They take values from other rows and calls: a few rows do not show them.
    races = [h for h in tried if _is_race(h)]
    likely = _likely(search.screened([h for h in tried if h not in races]))
    scores = search.to_the_end(likely)
    if not _covered(scores, search.cases):
        rest = [h for h in tried if h not in likely and h not in races]
        rows = max(int(case.failing.sum()) for case in search.cases)
        scores += search.scores(races + rest if rows <= _FEW_ROWS else rest + races)
    return scores


def _is_race(hypothesis: Hypothesis) -> bool:
    return hypothesis.fault.unit == "call" and hypothesis.fault.category == "races"


def _part_scores(
    tried: list[Hypothesis],
    search: _Search[LayerCase],
    test: Callable[[Sequence[LayerCase], Hypothesis], Score | None],
) -> list[Score]:
    """Test faults that only some blocks, or rows of weights, have, until one explains everything, and a few after it."""
    scores: list[Score] = []
    more = _AFTER_FOUND
    for hypothesis in tried:
        if time.thread_time() > search.end or not more:
            break
        if found := test(search.cases, hypothesis):
            scores.append(found)
        more -= _told(scores, search.cases)
    return scores


def _likely(screened: list[Score]) -> list[Hypothesis]:
    """Return what is worth a test in full: the best few, and whatever explained as much of the few rows as the best one."""
    as_good = sum(s.share >= screened[0].share for s in screened) if screened and screened[0].share else 0
    return [s.hypothesis for s in screened[: min(max(_CONFIRMED, as_good), _MOST_CONFIRMED)]]


def _covered(scores: list[Score], cases: Sequence[CallCase]) -> bool:
    """Return whether every case is explained whole by one of the scores."""
    bad = [n for n, case in enumerate(cases) if case.fails]
    return all(any(int(s.explained[n].sum()) == s.of[n] for s in scores if n in s.explained) for n in bad)


def _told(scores: list[Score], cases: Sequence[CallCase]) -> bool:
    """Return whether every case is explained whole, and by more than NaN and zeros, which many faults cause alike."""
    told = any(bool((c.illegal & c.seen.isfinite() & (c.seen != 0)).any()) for c in cases)
    return told and _covered(scores, cases)

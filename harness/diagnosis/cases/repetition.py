"""A failing rule repeated with every stage call recorded, until one of its calls is illegal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from harness.candidates.protocol import traits_of
from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.collection import cases_of, is_wrong_layer
from harness.diagnosis.cases.habits import Habits
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import Observed, Recorder, name_calls
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.rules import NotApplicableError, find_rules

# Of the failing rule: what strikes in a quarter of its calls is then missed once in a thousand diagnoses.
MOST_RUNS = 24
FEW_RUNS = 4
_RUNS_SECONDS = 2.0  # after which no further run begins, once there were a few


@dataclass
class Repetitions:
    """How often a rule was repeated, how often it passed, and whether it failed at all."""

    number: int = 0
    passed: int = 0
    failed: bool = False


def failing_calls(
    candidate: Any, known: Known, bounds: Bounds, rule_id: str, problem: str
) -> tuple[list[Observed], list[CallCase], Repetitions]:
    """Run a rule until one of its calls is illegal, twice at least: the first time fills what a fault may remember.

    Returns:
        The recorded calls of the first run and of the last two, the cases of the last run (of the first one, where only
        that was illegal), and how it went.
    """
    end = time.monotonic() + _RUNS_SECONDS
    recorder = Recorder(candidate)
    first: list[CallCase] = []
    habits: dict[str, tuple[Habits, bool]] = {}
    runs, starts = Repetitions(), [0]
    while runs.number < MOST_RUNS and (runs.number < FEW_RUNS or time.monotonic() < end):
        if len(starts) > 3:  # the runs between the first one and the last two have nothing to tell
            del recorder.calls[starts[1] : starts[2]]
            starts = [0, starts[1], starts[1] + starts[3] - starts[2]]
        runs.number += 1
        failed = run_rule_once(recorder, known, rule_id, problem)
        if failed is None:
            break
        runs.failed |= failed
        runs.passed += not failed
        calls = recorder.calls[starts[-1] :]
        starts.append(len(recorder.calls))
        name_calls(calls)
        cases = cases_of(calls, bounds, habits)
        bad = any(case.fails for case in cases)
        if runs.number > 1 and (bad or (failed and any(is_wrong_layer(call, bounds) for call in calls))):
            return recorder.calls, cases, runs
        first = first or (cases if bad else [])
        if runs.failed and runs.number >= FEW_RUNS:
            break
    return recorder.calls, first, runs


def run_rule_once(recorder: Recorder, known: Known, rule_id: str, problem: str) -> bool | None:
    """Run a rule on a recording candidate and return whether it failed, None where it compared nothing."""
    try:
        found = find_rules([rule_id])[0].function()(Context(recorder, parse_problem(problem), known))
    except NotApplicableError:
        return None
    except Exception:  # noqa: BLE001 - the failure being diagnosed may be this very error
        return True
    return any(comparison.illegal for comparison in found) if found else None


def bounds_of(candidate: Any, known: Known) -> Bounds:
    """Return how a candidate's calls are judged."""
    traits = traits_of(candidate)
    return Bounds(
        known.arithmetic,
        known.accumulator,
        traits.keeps_sign_of_zero,
        traits.store_rows,
        tuple(traits.unrounded),
    )

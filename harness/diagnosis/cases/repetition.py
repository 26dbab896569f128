"""A failing rule repeated with every stage call recorded: until a call is illegal, and whether it always is the same."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from harness.candidates.protocol import traits_of
from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.collection import cases_of, is_wrong_layer
from harness.diagnosis.cases.habits import Habits
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import Observed, Recorder, bytes_of, name_calls
from harness.diagnosis.cases.views import seen, valid
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.rules import NotApplicableError, find_rules

# Of the failing rule: what strikes in a quarter of its calls is then missed once in a thousand diagnoses.
MOST_RUNS = 24
FEW_RUNS = 4
SAME_RUNS = 6  # that must agree: a race with one of two places then passes for none once in 32 times
_RUNS_SECONDS = 2.0  # after which no further run begins, once there were a few


@dataclass
class Repetitions:
    """How often a rule was repeated.

    Attributes:
        number: how often.
        passed: how often it passed.
        failed: whether it failed at all.
        error: what the candidate raised, or did against the contract, which ends the repetitions; None for neither.
    """

    number: int = 0
    passed: int = 0
    failed: bool = False
    error: Exception | None = None


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
        try:
            failed = _run_rule(recorder, known, rule_id, problem)
        except Exception as error:  # noqa: BLE001 - the failure being diagnosed may be this very error
            runs.failed, runs.error = True, error
            return recorder.calls, [], runs
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
        return _run_rule(recorder, known, rule_id, problem)
    except Exception:  # noqa: BLE001 - an error is a failure
        return True


def _run_rule(recorder: Recorder, known: Known, rule_id: str, problem: str) -> bool | None:
    """Do what `run_rule_once` does, and raise what the candidate raises."""
    try:
        found = find_rules([rule_id])[0].function()(Context(recorder, parse_problem(problem), known))
    except NotApplicableError:
        return None
    return any(comparison.illegal for comparison in found) if found else None


def repeats_itself(candidate: Any, known: Known, rule_id: str, problem: str) -> bool:
    """Return whether a candidate's calls give the same bits in every repetition of a rule: then nothing is a race."""
    end, before = time.monotonic() + _RUNS_SECONDS, b""
    for number in range(SAME_RUNS + 1):
        recorder = Recorder(candidate)
        run_rule_once(recorder, known, rule_id, problem)
        digest = hashlib.sha256()
        for call in recorder.calls:
            digest.update(bytes_of(seen(call)[valid(call)]).numpy(force=True).tobytes())
        if number > 1 and digest.digest() != before:  # the first one fills what a candidate may remember
            return False
        before = digest.digest()
        if number >= FEW_RUNS and time.monotonic() > end:
            break
    return True


def bounds_of(candidate: Any, known: Known) -> Bounds:
    """Return how a candidate's calls are judged."""
    traits = traits_of(candidate)
    return Bounds(
        known.arithmetic,
        known.accumulator,
        traits.keeps_sign_of_zero,
        traits.store_rows,
        known.unrounded,
        known.summation,
    )

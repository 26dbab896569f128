"""The diagnosis of one failing problem: record the failing rule's calls, find the illegal ones, test the catalog on them."""

from __future__ import annotations

import time
from typing import Any

from harness.candidates.protocol import stages_of, traits_of
from harness.context import Context, Known
from harness.diagnosis.describe import findings
from harness.diagnosis.explain import Case
from harness.diagnosis.models import models
from harness.diagnosis.observation import MASKED_MOE, Observed, Recorder
from harness.diagnosis.rank import explain
from harness.diagnosis.views import Bounds, legal
from harness.problem import parse_problem
from harness.rules import find_rules

SECONDS = 2.5  # for testing hypotheses


def diagnose_problem(
    candidate: Any, known: Known, rule_id: str, problem: str, *, command: str = "", seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """Return what explains the failure of one rule on one problem, the best explanation first, JSON-ready.

    Args:
        candidate: the candidate that failed.
        known: its arithmetic and accumulator, as it was judged.
        rule_id: the rule that failed.
        problem: the problem's string.
        command: repeats the diagnosis.
        seconds: after which no further hypothesis is tested.
    """
    end = time.monotonic() + seconds
    bounds = bounds_of(candidate, known)
    calls = recorded(candidate, known, rule_id, problem)
    cases = illegal_cases(calls, bounds)
    if not cases and any(call.stage == MASKED_MOE for call in calls) and "masked_grouped_gemm" in stages_of(candidate):
        calls = recorded(candidate, known, "PIPELINE", problem)
        cases = illegal_cases(calls, bounds)
    if not cases:
        return []
    return findings(explain(cases, calls, end - time.monotonic()), cases, command)


def bounds_of(candidate: Any, known: Known) -> Bounds:
    """Return how a candidate's calls are judged."""
    return Bounds(known.arithmetic, known.accumulator, traits_of(candidate).keeps_sign_of_zero)


def recorded(candidate: Any, known: Known, rule_id: str, problem: str) -> list[Observed]:
    """Run a rule once more and return the stage calls that it made; a rule that raises ends early."""
    recorder = Recorder(candidate)
    try:
        find_rules([rule_id])[0].function()(Context(recorder, parse_problem(problem), known))
    except Exception:  # noqa: BLE001, S110 - the failure being diagnosed may be this very error
        pass
    return recorder.named()


def illegal_cases(calls: list[Observed], bounds: Bounds) -> list[Case]:
    """Return the calls of inner stages that have illegal elements."""
    cases = []
    for call in calls:
        if call.stage == MASKED_MOE:
            continue
        allowed = legal(call, bounds)
        if not bool(allowed.all()):
            cases.append(Case(call, allowed, models(bounds.arithmetic.reciprocal), bounds))
    return cases

"""The diagnosis of one failing problem: record the failing rule's calls, find the illegal ones, test the catalog on them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch

from harness.candidates.protocol import LAYER_STAGES, stages_of
from harness.diagnosis.cases.case import SMALL, CallCase
from harness.diagnosis.cases.collection import cases_around, cases_of, layer_cases
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed
from harness.diagnosis.cases.repetition import bounds_of, failing_calls
from harness.diagnosis.hypotheses.search import search_calls, search_layers
from harness.diagnosis.telling.describe import findings, no_illegal_call, passed_again
from harness.judging.context import Known

SECONDS = 4.0  # for testing hypotheses: most searches need less than 2
# Where only a layer's output was seen, and the likely explanations are none: most searches need 5; more for large layers.
MORE_SECONDS = 10.0
_MOST_LARGER = 4.5  # the runner ends a diagnosis after a minute


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
    with _one_thread():
        bounds = bounds_of(candidate, known)
        calls, cases, runs = failing_calls(candidate, known, bounds, rule_id, problem)
        layers = any(call.stage == MASKED_MOE for call in calls)
        if not _any_fails(cases) and layers and MASKED_GEMM in stages_of(candidate):
            inner, inner_cases, _ = failing_calls(candidate, known, bounds, "PIPELINE", problem)
            calls, cases = (inner, inner_cases) if _any_fails(inner_cases) else (calls, cases)
        found = _explained(calls, cases, bounds, time.thread_time() + seconds, command)
        if found:
            return found
        if runs.failed:
            return [no_illegal_call(rule_id, command)]
        return [passed_again(rule_id, runs.passed, command)] if runs.passed else []


def diagnose_calls(
    calls: list[Observed], bounds: Bounds, seconds: float, command: str
) -> list[dict[str, Any]]:
    """Return what explains recorded calls, the best explanation first; nothing where every element is legal."""
    with _one_thread():
        return _explained(calls, cases_of(calls, bounds), bounds, time.thread_time() + seconds, command)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: the tensors are small, and threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _explained(
    calls: list[Observed], cases: list[CallCase], bounds: Bounds, end: float, command: str
) -> list[dict[str, Any]]:
    if _any_fails(cases):
        return _explained_calls(calls, cases, bounds, end, command)
    layers = layer_cases(calls, bounds)
    if not layers:
        return []
    larger = math.sqrt(max(case.work() for case in layers) / SMALL)
    seconds = end - time.thread_time() + MORE_SECONDS * min(max(larger, 1.0), _MOST_LARGER)
    return findings(search_layers(layers, calls, seconds), layers, command)


def _explained_calls(
    calls: list[Observed], cases: list[CallCase], bounds: Bounds, end: float, command: str
) -> list[dict[str, Any]]:
    found = findings(search_calls(cases, calls, end - time.thread_time()), cases, command)
    if _in_full(found) or not any(case.call.stage in LAYER_STAGES for case in cases if case.fails):
        return found
    # A fault may look more like the other right order of rows or slots than like its own.
    other: list[CallCase] = []
    for case in cases:
        other += cases_around(case.call, bounds, 1) if case.call.stage in LAYER_STAGES else [case]
    again = findings(search_calls(other, calls, end - time.thread_time()), other, command)
    return again if again and _in_full(again) else found


def _in_full(found: list[dict[str, Any]]) -> bool:
    """Return whether nothing is left unexplained."""
    return all(finding["fault"] for finding in found)


def _any_fails(cases: list[CallCase]) -> bool:
    return any(case.fails for case in cases)

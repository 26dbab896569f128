"""The diagnosis of one failing problem: record the failing rule's calls, find the illegal ones, test the catalog on them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.candidates.protocol import LAYER_STAGES, stages_of
from harness.diagnosis.cases.case import SMALL, CallCase
from harness.diagnosis.cases.collection import cases_around, cases_of, layer_cases, routed_layers
from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed
from harness.diagnosis.cases.repetition import bounds_of, failing_calls, repeats_itself
from harness.diagnosis.hypotheses.comparisons import faults_that_fail_alike, is_about_preparation
from harness.diagnosis.hypotheses.score import Score
from harness.diagnosis.hypotheses.search import search_calls, search_layers
from harness.diagnosis.telling.describe import failing_alike, findings, no_illegal_call, passed_again, raised
from harness.judging.context import Known
from harness.rules import find_rules

SECONDS = 4.0  # for testing hypotheses: most searches need less than 2; more for large calls
# Where only a layer's output was seen, and the likely explanations are none: most searches need 5; more for large layers.
MORE_SECONDS = 10.0
_MOST_LARGER_CALLS = 3.0
_MOST_LARGER = 4.5  # the runner ends a diagnosis after a minute


def diagnose_problem(
    candidate: Any,
    known: Known,
    rule_id: str,
    problem: str,
    *,
    command: str = "",
    likely: Sequence[str] = (),
    seconds: float = SECONDS,
    earlier: Sequence[Observed] = (),
) -> list[dict[str, Any]]:
    """Return what explains the failure of one rule on one problem, the best explanation first, JSON-ready.

    Args:
        candidate: the candidate that failed.
        known: its arithmetic and accumulator, as it was judged.
        rule_id: the rule that failed.
        problem: the problem's string.
        command: repeats the diagnosis.
        likely: names of faults that are tested in any case, those that explain another failure of the rule.
        seconds: after which no further hypothesis is tested.
        earlier: the candidate's first calls in this process (harness.diagnosis.cases.earlier).
    """
    with _one_thread():
        bounds = bounds_of(candidate, known)
        calls, cases, runs = failing_calls(candidate, known, bounds, rule_id, problem)
        if runs.error is not None:
            return [raised(runs.error, command)]
        layers, found_by = any(call.stage == MASKED_MOE for call in calls), rule_id
        if not _any_fails(cases) and layers and MASKED_GEMM in stages_of(candidate):
            inner, inner_cases, _ = failing_calls(candidate, known, bounds, "PIPELINE", problem)
            if _any_fails(inner_cases):
                calls, cases, found_by = inner, inner_cases, "PIPELINE"

        def by_chance() -> bool:
            return not repeats_itself(candidate, known, found_by, problem)

        end = time.thread_time() + seconds
        found = _Diagnosis(calls, bounds, end, command, tuple(likely), by_chance, earlier).explained(cases)
        if found:
            return found
        if runs.failed and is_about_preparation(find_rules([rule_id])[0].stages):
            alike, bad = faults_that_fail_alike(candidate, known, rule_id, problem, seconds)
            if alike:
                return [failing_alike(alike, bad, command)]
        if runs.failed:
            return [no_illegal_call(rule_id, command)]
        return [passed_again(rule_id, runs.passed, command)] if runs.passed else []


def diagnose_calls(
    calls: list[Observed], bounds: Bounds, seconds: float, command: str
) -> list[dict[str, Any]]:
    """Return what explains recorded calls, the best explanation first; nothing where every element is legal."""
    with _one_thread():
        end = time.thread_time() + seconds
        found = _Diagnosis(calls, bounds, end, command).explained(cases_of(calls, bounds))
    return [_once(finding) if finding.get("by_chance") else finding for finding in found]


def _once(finding: dict[str, Any]) -> dict[str, Any]:
    """Return a race that was seen in calls that cannot be repeated: weak."""
    doubt = "one recording does not tell what strikes by chance from what is always so"
    return {**finding, "weak": doubt, "evidence": f"{finding['evidence']}; weak: {doubt}"}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: the tensors are small, and threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Diagnosis:
    """What is to be explained, and with what.

    Attributes:
        calls: all recorded calls, in order.
        bounds: how they are judged.
        end: thread time after which no further hypothesis is tested.
        command: repeats the diagnosis.
        likely: names of faults that are tested in any case.
        by_chance: whether repetitions differ; asked only where a fault would explain it that strikes here and there.
        earlier: calls of the same process before those, of which only the arguments are known.
    """

    calls: list[Observed]
    bounds: Bounds
    end: float
    command: str
    likely: tuple[str, ...] = ()
    by_chance: Callable[[], bool] = lambda: True
    earlier: Sequence[Observed] = ()

    def explained(self, cases: list[CallCase]) -> list[dict[str, Any]]:
        """Return what explains the cases, or, where all of them are right, layers of which only the output was seen.

        A routed layer that does nothing wrong as a whole is looked into.
        """
        if not _any_fails(cases):
            layers = layer_cases(self.calls, self.bounds)
            return self._of_layers(layers) if layers else []
        found = self._of_calls(cases)
        if _in_full(found) or not (fused := routed_layers(cases)):
            return found
        inside = self._of_layers(fused)
        return inside if _in_full(inside) or not any(finding["fault"] for finding in found) else found

    def _of_layers(self, layers: list[LayerCase]) -> list[dict[str, Any]]:
        larger = math.sqrt(max(case.work() for case in layers) / SMALL)
        seconds = max(self.end - time.thread_time(), 0.0) + MORE_SECONDS * min(max(larger, 1.0), _MOST_LARGER)
        scores = search_layers(layers, self.calls, seconds, self.likely)
        return findings(self._possible(scores), layers, self.command)

    def _of_calls(self, cases: list[CallCase]) -> list[dict[str, Any]]:
        found = self._findings(cases)
        if _in_full(found) or not any(case.call.stage in LAYER_STAGES for case in cases if case.fails):
            return found
        # A fault may look more like the other right order of rows or slots than like its own.
        other: list[CallCase] = []
        for case in cases:
            other += cases_around(case.call, self.bounds, 1) if case.call.stage in LAYER_STAGES else [case]
        again = self._findings(other)
        return again if again and _in_full(again) else found

    def _findings(self, cases: list[CallCase]) -> list[dict[str, Any]]:
        left = self.end - time.thread_time()
        larger = math.sqrt(sum(case.work() for case in cases if case.fails) / SMALL)
        seconds = left * min(max(larger, 1.0), _MOST_LARGER_CALLS)
        scores = search_calls(cases, self.calls, seconds, self.earlier)
        return findings(self._possible(scores), cases, self.command)

    def _possible(self, scores: list[Score]) -> list[Score]:
        """Return the scores without races where every repetition gives the same bits."""
        if any(score.placed and score.explained for score in scores) and not self.by_chance():
            return [score for score in scores if not score.placed]
        return scores


def _in_full(found: list[dict[str, Any]]) -> bool:
    """Return whether nothing is left unexplained."""
    return all(finding["fault"] for finding in found)


def _any_fails(cases: list[CallCase]) -> bool:
    return any(case.fails for case in cases)

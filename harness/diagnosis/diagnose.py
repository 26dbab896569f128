"""The diagnosis of one failing problem: record the failing rule's calls, find the illegal ones, test the catalog on them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import LAYER_STAGES, stages_of, traits_of
from harness.diagnosis.cases.around import layer_legal, layer_models
from harness.diagnosis.cases.case import SMALL, Case, same
from harness.diagnosis.cases.habits import Habits, learned_habits
from harness.diagnosis.cases.models import Model, models
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed, Recorder, name_calls
from harness.diagnosis.cases.views import Bounds, input_bytes, legal, memory_of, seen, untouchable, valid
from harness.diagnosis.hypotheses.hypothesis import Failed, predict
from harness.diagnosis.hypotheses.layers import LayerCase
from harness.diagnosis.hypotheses.planted_layer import INNER, legal_layer
from harness.diagnosis.hypotheses.search import explain, explain_layer
from harness.diagnosis.telling.describe import findings, no_illegal_call, passed_again
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.rules import NotApplicableError, find_rules

SECONDS = 4.0  # for testing hypotheses: most searches need less than 2
# Where only a layer's output was seen, and the likely explanations are none: most searches need 5; more for large layers.
MORE_SECONDS = 10.0
_MOST_LARGER = 4.5  # the runner ends a diagnosis after a minute
# Of the failing rule: what strikes in a quarter of its calls is then missed once in a thousand diagnoses.
_MOST_RUNS = 24
_RUNS_SECONDS = 2.0  # after which no further run begins, once there were a few
_FEW_RUNS = 4


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
    with one_thread():
        return _diagnosed(candidate, known, rule_id, problem, command, seconds)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the tensors are small, and threads that wait for each other cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _diagnosed(
    candidate: Any, known: Known, rule_id: str, problem: str, command: str, seconds: float
) -> list[dict[str, Any]]:
    bounds = bounds_of(candidate, known)
    calls, cases, runs = failing_calls(candidate, known, bounds, rule_id, problem)
    layers = any(call.stage == MASKED_MOE for call in calls)
    if not _bad(cases) and layers and MASKED_GEMM in stages_of(candidate):
        inner, inner_cases, _ = failing_calls(candidate, known, bounds, "PIPELINE", problem)
        calls, cases = (inner, inner_cases) if _bad(inner_cases) else (calls, cases)
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
    with one_thread():
        return _explained(calls, cases_of(calls, bounds), bounds, time.thread_time() + seconds, command)


def _explained(
    calls: list[Observed], cases: list[Case], bounds: Bounds, end: float, command: str
) -> list[dict[str, Any]]:
    if _bad(cases):
        found = findings(explain(cases, calls, end - time.thread_time()), cases, command)
        if all(f["fault"] for f in found) or not any(c.call.stage in LAYER_STAGES for c in _bad(cases)):
            return found
        # A fault may look more like the other right order of rows or slots than like its own.
        other = [
            o
            for c in cases
            for o in (_layer_stage_case(c.call, bounds, 1) if c.call.stage in LAYER_STAGES else [c])
        ]
        again = findings(explain(other, calls, end - time.thread_time()), other, command)
        return again if again and all(f["fault"] for f in again) else found
    if layers := opaque_cases(calls, bounds):
        larger = math.sqrt(max(case.work() for case in layers) / SMALL)
        seconds = end - time.thread_time() + MORE_SECONDS * min(max(larger, 1.0), _MOST_LARGER)
        return findings(explain_layer(layers, calls, seconds), layers, command)
    return []


def opaque_cases(calls: list[Observed], bounds: Bounds) -> list[Case]:
    """Return the last call of a whole layer that has illegal elements or changed its inputs, as cases.

    Those before it are what a fault may remember.
    """
    cases: list[Case] = []
    for call in reversed(calls):
        if call.stage != MASKED_MOE or cases:
            continue
        allowed = legal_layer(call, bounds)
        if not bool(allowed.all()):
            cases.append(LayerCase(call, allowed, _models(bounds), bounds))
        if call.changed:
            kept = seen(call, "inputs") == input_bytes(call.arguments)
            cases.append(LayerCase(call, kept, _models(bounds), bounds, "inputs"))
    return cases


def _wrong_layer(call: Observed, bounds: Bounds) -> bool:
    return call.stage == MASKED_MOE and (bool(call.changed) or not bool(legal_layer(call, bounds).all()))


def _models(bounds: Bounds) -> list[Model]:
    """Return right implementations that store as the candidate declares."""
    variants = models(bounds.arithmetic)
    for model in variants:
        model.store_rows = bounds.store_rows
    return variants


def _bad(cases: list[Case]) -> list[Case]:
    return [case for case in cases if bool(case.illegal.any())]


@dataclass
class Runs:
    """How often a rule was repeated, how often it passed, and whether it failed at all."""

    number: int = 0
    passed: int = 0
    failed: bool = False


def failing_calls(
    candidate: Any, known: Known, bounds: Bounds, rule_id: str, problem: str
) -> tuple[list[Observed], list[Case], Runs]:
    """Run a rule until one of its calls is illegal, twice at least: the first time fills what a fault may remember.

    Returns:
        The recorded calls of the first run and of the last two, the cases of the last run (of the first one, where only
        that was illegal), and how it went.
    """
    end = time.monotonic() + _RUNS_SECONDS
    recorder = Recorder(candidate)
    first: list[Case] = []
    habits: dict[str, tuple[Habits, bool]] = {}
    runs, starts = Runs(), [0]
    while runs.number < _MOST_RUNS and (runs.number < _FEW_RUNS or time.monotonic() < end):
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
        if runs.number > 1 and (_bad(cases) or (failed and any(_wrong_layer(c, bounds) for c in calls))):
            return recorder.calls, cases, runs
        first = first or (cases if _bad(cases) else [])
        if runs.failed and runs.number >= _FEW_RUNS:
            break
    return recorder.calls, first, runs


def bounds_of(candidate: Any, known: Known) -> Bounds:
    """Return how a candidate's calls are judged."""
    traits = traits_of(candidate)
    return Bounds(known.arithmetic, known.accumulator, traits.keeps_sign_of_zero, traits.store_rows)


def run_rule_once(recorder: Recorder, known: Known, rule_id: str, problem: str) -> bool | None:
    """Run a rule on a recording candidate and return whether it failed, None where it compared nothing."""
    try:
        found = find_rules([rule_id])[0].function()(Context(recorder, parse_problem(problem), known))
    except NotApplicableError:
        return None
    except Exception:  # noqa: BLE001 - the failure being diagnosed may be this very error
        return True
    return any(comparison.illegal for comparison in found) if found else None


def cases_of(
    calls: list[Observed], bounds: Bounds, habits: dict[str, tuple[Habits, bool]] | None = None
) -> list[Case]:
    """Return the calls of inner stages as cases, those without anything illegal too: a fault would show there as well.

    Args:
        calls: what was recorded.
        bounds: how it is judged.
        habits: of each stage, what earlier calls have shown that the candidate leaves in padding; more is added.
    """
    allowed = {id(call): legal(call, bounds) for call in calls if call.stage in INNER}
    habits = {} if habits is None else habits
    for call in calls:  # a call without anything illegal shows best what the candidate leaves in its padding
        if call.stage in INNER and bool(allowed[id(call)].all()) and not bool(valid(call).all()):
            habits.setdefault(call.stage, learned_habits(call, valid(call), seen(call)))
    cases = []
    for call in calls:
        if call.stage in LAYER_STAGES:
            cases += _layer_stage_case(call, bounds)
        elif call.stage in INNER:
            cases += _inner_cases(call, allowed[id(call)], bounds, habits.get(call.stage))
    return cases


def _inner_cases(
    call: Observed, allowed: Tensor, bounds: Bounds, habits: tuple[Habits, bool] | None
) -> list[Case]:
    views = {"output": allowed}
    if call.stage == MASKED_GEMM:
        kept = same(memory_of(call.output), memory_of(call.arguments["out"]))
        views["memory"] = kept | ~untouchable(call, bounds.store_rows)
    if call.changed:
        views["inputs"] = seen(call, "inputs") == input_bytes(call.arguments)
    variants, cases = _models(bounds), []
    for view, mask in views.items():
        if view == "output" or not bool(mask.all()):
            with contextlib.suppress(Failed):
                cases.append(Case(call, mask, variants, bounds, view, known_habits=habits))
    return cases


def _layer_stage_case(call: Observed, bounds: Bounds, rank: int = 0) -> list[Case]:
    """Return a call of a stage around the layer, judged by the right implementation that is nearest to it, or by the next one."""
    got, refusal = seen(call), ""
    judged: list[tuple[tuple[int, int], Any, Tensor]] = []
    for model in layer_models():
        try:
            right = predict(model, call, None)["output"]
        except Failed as error:
            refusal = str(error)
            continue
        allowed = layer_legal(call.stage, call.arguments, got, right)
        # Of two experts, weights in the wrong order look like experts in the other order: then the order of ids decides.
        alike = same(got, right)[..., : call.arguments.get("topk")]
        judged.append(((int(allowed.sum()), int(alike.sum())), model, allowed))
    if not judged:  # the candidate takes what every right implementation refuses
        nothing = torch.zeros(got.shape, dtype=torch.bool)
        return [Case(call, nothing, layer_models()[:1], bounds, refused=refusal)]
    judged.sort(key=lambda found: found[0], reverse=True)
    try:
        _, model, allowed = judged[min(rank, len(judged) - 1)]
        return [Case(call, allowed, [model], bounds)]
    except Failed:
        return []

"""Recorded calls as cases: each is judged on its own inputs, so that faults of different stages are apart."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import LAYER_STAGES, ROUTED
from harness.diagnosis.cases.around import is_padded_load, legal_around, models_around
from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.habits import Habits, learned_habits
from harness.diagnosis.cases.layer_case import LayerCase, RoutedLayerCase
from harness.diagnosis.cases.legality import Bounds, legal, legal_layer
from harness.diagnosis.cases.models import models
from harness.diagnosis.cases.observation import INNER, MASKED_GEMM, MASKED_MOE, Observed
from harness.diagnosis.cases.replay import ReplayError, replayed
from harness.diagnosis.cases.routed import routed_cases
from harness.diagnosis.cases.transported import combined_between, legal_transported, taken_for
from harness.diagnosis.cases.views import input_bytes, memory_of, same, seen, untouchable, valid


def cases_of(
    calls: list[Observed], bounds: Bounds, habits: dict[str, tuple[Habits, bool]] | None = None
) -> list[CallCase]:
    """Return the calls of single stages as cases, those without anything illegal too: a fault would show there as well.

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
            cases += cases_around(call, bounds)
        elif call.stage in INNER:
            cases += _inner_cases(call, allowed[id(call)], bounds, habits.get(call.stage))
        elif call.stage == ROUTED:
            cases += routed_cases(call, bounds)
    return cases


def _inner_cases(
    call: Observed, allowed: Tensor, bounds: Bounds, habits: tuple[Habits, bool] | None
) -> list[CallCase]:
    """Return a call's output as a case, and each other view of it that has anything illegal."""
    views = {"output": allowed}
    if call.stage == MASKED_GEMM:
        kept = same(memory_of(call.output), memory_of(call.arguments["out"]))
        views["memory"] = kept | ~untouchable(call, bounds.store_rows)
    if call.changed:
        views["inputs"] = _kept_inputs(call)
    variants = models(bounds.arithmetic, bounds.store_rows, bounds.unrounded, call.traits)
    cases = []
    for view, mask in views.items():
        if view == "output" or not bool(mask.all()):
            with contextlib.suppress(ReplayError):
                cases.append(CallCase(call, mask, variants, bounds, view, known_habits=habits))
    return cases


def cases_around(call: Observed, bounds: Bounds, rank: int = 0) -> list[CallCase]:
    """Return a call of a stage around the layer, judged by one of the right implementations.

    Args:
        call: the call.
        bounds: how the candidate computes.
        rank: of the implementation, 0 for the one that is nearest to what was seen, 1 for the next one.
    """
    if is_padded_load(call):
        return []
    got, refusal = seen(call), ""
    coded = between = None
    if call.stage == "dispatch":
        coded = legal_transported(call.arguments, got, bounds)
    elif call.stage == "combine" and (between := combined_between(call.arguments, got)) is not None:
        coded = (got >= between[0]) & (got <= between[1])
    judged: list[tuple[tuple[int, int], Any, Tensor, Tensor]] = []
    for model in models_around(call.stage):
        try:
            right = replayed(model, call)["output"]
        except ReplayError as error:
            refusal = str(error)
            continue
        taken = got if coded is None else taken_for(call.arguments, coded, got, right)
        allowed = legal_around(call.stage, call.arguments, taken, right)
        # Of two experts, weights in the wrong order look like experts in the other order: then the order of ids decides.
        alike = same(got, right)[..., : call.arguments.get("topk")]
        judged.append(((int(allowed.sum()), int(alike.sum())), model, allowed, taken))
    if not judged:  # the candidate takes what every right implementation refuses
        nothing = torch.zeros(got.shape, dtype=torch.bool)
        return [CallCase(call, nothing, models_around(call.stage)[:1], bounds, refused=refusal)]
    judged.sort(key=lambda found: found[0], reverse=True)
    try:
        _, model, allowed, taken = judged[min(rank, len(judged) - 1)]
        return [CallCase(call, allowed, [model], bounds, seen_as=taken, between=between)]
    except ReplayError:
        return []


def layer_cases(calls: list[Observed], bounds: Bounds) -> list[LayerCase]:
    """Return the last call of a whole layer that has illegal elements or changed its inputs, as cases.

    Those before it are what a fault may remember.
    """
    for call in reversed(calls):
        if call.stage != MASKED_MOE:
            continue
        views = {"output": legal_layer(call, bounds)}
        if call.changed:
            views["inputs"] = _kept_inputs(call)
        bad = {view: allowed for view, allowed in views.items() if not bool(allowed.all())}
        if bad:
            return [
                LayerCase(
                    call,
                    allowed,
                    models(bounds.arithmetic, bounds.store_rows, bounds.unrounded, call.traits),
                    bounds,
                    view,
                )
                for view, allowed in bad.items()
            ]
    return []


def routed_layers(cases: list[CallCase]) -> list[LayerCase]:
    """Return the routed layers among cases that have illegal elements in their output, as layers with stages inside."""
    return [
        RoutedLayerCase(case.call, case.legal, list(case.models), case.bounds)
        for case in cases
        if case.call.stage == ROUTED and case.view == "output" and case.fails
    ]


def is_wrong_layer(call: Observed, bounds: Bounds) -> bool:
    """Return whether a call is of a whole layer and has illegal elements or changed its inputs."""
    return call.stage == MASKED_MOE and (bool(call.changed) or not bool(legal_layer(call, bounds).all()))


def _kept_inputs(call: Observed) -> Tensor:
    """Return which bytes of its inputs a call left as they were."""
    return seen(call, "inputs") == input_bytes(call.arguments)

"""Which hypotheses explain layers of which only the final output was seen, row by row.

A row is explained where the prediction comes much nearer to it than the right output does. A fault may sit in one of two
stage calls of a row: both are tried. Faults of some blocks and of some rows of the weights are in blocks.py and
weight_rows.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from harness.diagnosis.cases.layer_case import LayerCase, relative
from harness.diagnosis.cases.observation import MASKED_MOE, Observed
from harness.diagnosis.cases.replay import ReplayError, unharmed
from harness.diagnosis.cases.views import elements, same
from harness.diagnosis.hypotheses.choices import FEW_TRIES, Choices
from harness.diagnosis.hypotheses.hypothesis import Hypothesis, predict
from harness.diagnosis.hypotheses.planted_layer import Merge, PlantedLayer, faulted_calls, is_inner
from harness.diagnosis.hypotheses.score import Score
from harness.diagnosis.hypotheses.taken_over import ThroughLayer
from harness.faults.fault import Parameters

NEAR = 0.05  # relative distance of a row that legal code flips may cause
MUCH_NEARER = 0.3  # of the distance of the right output: what an explanation must reach
_EXACTLY = 1e-6
_SAME = 0.01  # relative distance of a row that another order of addition may cause
_REMEMBERED = 2  # layers before the failing one that a fault may remember

Variants = Callable[[LayerCase, Score], Iterable[Tensor] | None]


def score_layers(cases: Sequence[LayerCase], calls: list[Observed], hypothesis: Hypothesis) -> Score | None:
    """Test one hypothesis on opaque layers; None where it cannot be planted."""
    result = Score(hypothesis, illegal_elements(cases))
    return score_variants(result, cases, lambda case, score: _variants(case, calls, score))


def score_variants(result: Score, cases: Sequence[LayerCase], variants: Variants) -> Score | None:
    """Fill a score with what the outputs explain that a fault may have caused.

    Args:
        result: a score without any explanation; `of` says which cases are judged.
        cases: opaque layers.
        variants: these outputs of a case, as elements; None where the fault has nothing to do with it.

    Returns:
        The score; None where there are no outputs, or the fault cannot be planted.
    """
    try:
        for number in result.of:
            outputs = variants(cases[number], result)
            if outputs is None:
                return None
            _judge_variants(result, number, cases[number], outputs)
    except ReplayError:
        return None
    return result


def illegal_elements(
    cases: Sequence[LayerCase], views: tuple[str, ...] = ("output", "inputs")
) -> dict[int, int]:
    """Return how many illegal elements each failing case of some views has, by its number."""
    return {n: int(case.illegal.sum()) for n, case in enumerate(cases) if case.view in views and case.fails}


def planted_output(
    case: LayerCase,
    hypothesis: Hypothesis,
    only: int | None = None,
    *,
    rows: Tensor | None = None,
    merge: Merge | None = None,
    parameters: Parameters | None = None,
) -> Tensor:
    """Return the case's view of a layer with a fault in its stages, as elements.

    Args:
        case: the layer.
        hypothesis: the fault.
        only: number of the fault's stage calls that it is planted in; None for all.
        rows: `(experts, rows or 1)` bool, to which it is kept; None for all.
        merge: what a planted call of a quantizer results in, see `PlantedLayer`; None for the faulty result.
        parameters: of the fault; None for fresh ones.

    Raises:
        ReplayError: the fault cannot be planted.
    """
    parameters = parameters or hypothesis.parameters()
    healthy = case.healthy_stages
    planted = PlantedLayer(case.model, hypothesis, parameters, only, merge=merge, rows=rows, healthy=healthy)
    call, arguments = case.call, dict(case.call.arguments)
    if arguments.get("out") is not None:
        arguments["out"] = arguments["out"].clone()
    with unharmed(call):
        output = getattr(planted, call.stage)(**arguments)
        return elements(call.stage, arguments, output, case.view, call.forms)


def _variants(case: LayerCase, calls: list[Observed], result: Score) -> Iterable[Tensor]:
    """Yield the outputs that a fault may have caused: in both of its stage calls, or in one; in all rows, or the failing ones."""
    hypothesis = result.hypothesis
    if not is_inner(hypothesis):
        yield predict(case.model, case.call, hypothesis, views=(case.view,))[case.view]
        return
    if hypothesis.fault.unit == "call":
        yield from _by_chance(case, calls, result)
        return
    places: tuple[int | None, ...] = (None,)
    if faulted_calls(hypothesis, case.activation) > 1:
        places = (None, 0, 1)
    # Where values come from other rows, it matters that those are right.
    suspected = case.suspected()
    for only in places:
        result.trying = only
        yield planted_output(case, hypothesis, only)
        if suspected is not None:
            yield planted_output(case, hypothesis, only, rows=suspected)


def _by_chance(case: LayerCase, calls: list[Observed], result: Score) -> Iterable[Tensor]:
    """Yield the outputs under the likely random choices of a fault of memory or order, until one is what was seen."""
    hypothesis = result.hypothesis
    earlier = _remembered(case, calls, hypothesis)
    differs = ~same(case.seen, case.healthy) & case.illegal.any(-1, keepdim=True)
    count = faulted_calls(hypothesis, case.activation)
    everywhere = (True,) * count
    ways: list[tuple[int | None, tuple[bool, ...]]] = [(None, everywhere)]
    through = ThroughLayer(case)
    nearest = right = relative(case.seen, case.healthy)
    while ways:
        only, strikes = ways.pop(0)
        tensors = (t.flatten(2) for t in (differs, case.seen, case.healthy))
        choices = Choices(*tensors, through=through, strikes=strikes)
        while True:
            parameters = replace(earlier, random=choices, state=dict(earlier.state))
            predicted = planted_output(case, hypothesis, only, parameters=parameters)
            result.chosen |= choices.used
            result.placed |= choices.placed
            yield predicted
            nearest = torch.minimum(nearest, relative(case.seen, predicted))
            if bool((nearest[case.failing] <= _EXACTLY).all()):
                return
            explained = nearest[case.failing] <= MUCH_NEARER * right[case.failing]
            hopeless = choices.of_rows and choices.tries >= FEW_TRIES and not bool(explained.any())
            if hopeless or not choices.used or not choices.advance():
                break
        if strikes == everywhere and count > 1:  # then in one stage call alone, the last one first
            alone = range(count - 1, -1, -1)
            # What strikes by chance is there in the other calls too, and may remember them.
            ways = [
                (None, tuple(n == call for n in range(count))) if choices.asked else (call, ())
                for call in alone
            ]


def _remembered(case: LayerCase, calls: list[Observed], hypothesis: Hypothesis) -> Parameters:
    """Return the parameters of a fault after the layers before a case, without having struck."""
    parameters = replace(hypothesis.parameters(), random=Choices(None))
    layers = [call for call in calls if call.stage == MASKED_MOE]
    before = layers[: next((i for i, call in enumerate(layers) if call is case.call), 0)][-_REMEMBERED:]
    # The first call that was recorded comes after the failure itself, on the same inputs.
    for call in before or [case.call]:
        with unharmed(call):
            PlantedLayer(case.model.keep_to(None), hypothesis, parameters).masked_moe(**call.arguments)
    return parameters


def reading_other_rows(tried: list[Hypothesis], cases: Sequence[LayerCase], end: float) -> list[Hypothesis]:
    """Return the faults that a few rows do not show: with all rows there, they predict something else for those few."""
    pairs = [(cases[n].adding_at_once(), cases[n].screened()) for n in illegal_elements(cases, ("output",))]
    found = []
    for hypothesis in filter(is_inner, tried):
        if time.thread_time() > end:
            break
        with contextlib.suppress(ReplayError):
            if any(_shows_more(whole, few, hypothesis) for whole, few in pairs):
                found.append(hypothesis)
    return found


def _shows_more(whole: LayerCase, few: LayerCase, hypothesis: Hypothesis) -> bool:
    """Return whether a fault does something else to the rows of a case of few rows where all other rows are there."""
    everywhere, there = (planted_output(case, hypothesis) for case in (whole, few))
    return bool((relative(everywhere, there)[few.valid] > _SAME).any())


def _judge_variants(result: Score, number: int, case: LayerCase, variants: Iterable[Tensor]) -> None:
    """Add to a score which rows of a case are explained by one of several outputs that a fault may have caused."""
    failing = case.failing
    right = relative(case.seen, case.healthy)
    nearest = torch.full_like(right, torch.inf)
    exact = torch.zeros_like(failing)
    shows = torch.zeros_like(failing)
    composed = case.healthy
    for predicted in variants:
        distance = relative(case.seen, predicted)
        closer = distance < nearest
        if int((closer & failing).sum()) > int(failing.sum()) / 2:
            result.step = result.trying
        composed = torch.where(closer[..., None, None], predicted, composed)
        # An infinite distance of the right output (NaN against numbers) is beaten by any finite one.
        nearest = torch.minimum(nearest, distance)
        exact |= same(predicted, case.seen).all(-1).all(-1)
        shows |= (~same(predicted, case.healthy)).any(-1).any(-1) & case.valid
    result.prediction[number] = composed
    explained = failing & (nearest <= NEAR) & (nearest <= MUCH_NEARER * right)
    gained = 1 - (nearest / right.clamp(min=1e-30)).nan_to_num(1.0).clamp(max=1.0)
    result.near += float(gained[failing].mean()) / len(result.of)
    result.predicted += int(shows.sum())
    result.shown += int((shows & explained).sum())
    if bool(explained.any()):
        result.explained[number] = case.illegal & explained[..., None, None]
        result.exact &= bool(exact[explained].double().mean() > 0.9)

"""Which hypotheses explain single stage calls: each prediction is compared with the observed output, unit by unit.

A unit (a block, a row) is healthy where all of it is legal, explained where all of it is what the fault predicts, and
contradicts the fault otherwise. The share of illegal elements that lie in explained units is the score.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.earlier import Idle
from harness.diagnosis.cases.models import Model
from harness.diagnosis.cases.observation import MASKED_MOE, Observed
from harness.diagnosis.cases.replay import ReplayError, unharmed
from harness.diagnosis.cases.views import same
from harness.diagnosis.hypotheses.choices import FEW_TRIES, Choices
from harness.diagnosis.hypotheses.hypothesis import Hypothesis, predict
from harness.diagnosis.hypotheses.planted_layer import PlantedLayer, is_inner
from harness.diagnosis.hypotheses.score import Score
from harness.faults.fault import Parameters


@dataclass(frozen=True)
class _TestedCase:
    """What one prediction says about one case; the counts are `Score`'s."""

    number: int
    prediction: Tensor
    mask: Tensor
    near: int = 0
    exact: bool = True
    predicted: int = 0
    shown: int = 0
    nearby: int = 0
    absent: bool = False


def score_calls(
    cases: list[CallCase], calls: list[Observed], hypothesis: Hypothesis, earlier: Sequence[Observed] = ()
) -> Score | None:
    """Test one hypothesis on every case of its stages; None where it cannot be planted.

    Args:
        cases: the calls that are looked at; at least one has illegal elements.
        calls: all calls in order, for faults that remember earlier ones.
        hypothesis: what to test.
        earlier: calls of the same process before those, for what it keeps of the first ones.
    """
    mine: dict[int, list[int]] = {}
    for number, case in enumerate(cases):
        if case.call.stage in hypothesis.fault.stages:
            mine.setdefault(id(case.call), []).append(number)
    bad = [n for numbers in mine.values() for n in numbers if cases[n].fails]
    result = Score(hypothesis, {n: int(cases[n].illegal.sum()) for n in bad})
    if not bad:
        return None
    parameters = hypothesis.parameters()
    some = cases[bad[0]].model
    remembers = hypothesis.fault.unit == "call"
    remember(hypothesis, parameters, some, earlier if remembers else ())
    try:
        for call in _told_in_order(calls, mine, result):
            if remembers and call.stage == MASKED_MOE and is_inner(hypothesis):
                # What a fault remembers of the stage calls inside a layer, none of which was seen.
                with contextlib.suppress(ReplayError), unharmed(call):
                    PlantedLayer(some, hypothesis, parameters).masked_moe(**call.arguments)
                continue
            numbers = mine.get(id(call), [])
            if not remembers and not result.near and not any(n in result.of for n in numbers):
                break
            model = cases[numbers[0]].model if numbers else some
            tested, parameters.state = _best_choice(cases, numbers, call, model, parameters, result)
            for one in tested:
                _add(result, one)
    except ReplayError:
        return None
    return result


def remember(
    hypothesis: Hypothesis, parameters: Parameters, model: Model, earlier: Sequence[Observed]
) -> None:
    """Let a fault see earlier calls: it keeps in its parameters what it would have kept in the process."""
    for call in earlier:
        if call.stage in hypothesis.fault.stages:
            with contextlib.suppress(ReplayError):
                # What it returns or writes is of no interest, and it must not strike.
                predict(Idle(model), call, hypothesis, replace(parameters, random=Choices(None)), ())


def _told_in_order(calls: list[Observed], mine: dict[int, list[int]], result: Score) -> list[Observed]:
    """Return the calls that tell of a hypothesis, in the order in which they are predicted."""
    fault = result.hypothesis.fault
    if fault.unit == "call":  # it may remember any call of its stages
        inside = is_inner(result.hypothesis)
        return [c for c in calls if c.stage in fault.stages or (inside and c.stage == MASKED_MOE)]
    told = [call for call in calls if id(call) in mine]
    # Those with illegal elements first: most hypotheses end there.
    return sorted(told, key=lambda call: not any(n in result.of for n in mine[id(call)]))


def _best_choice(
    cases: list[CallCase],
    numbers: list[int],
    call: Observed,
    model: Model,
    parameters: Parameters,
    result: Score,
) -> tuple[list[_TestedCase], dict[str, Any]]:
    """Predict one call, with the random choices that explain most of it; return its cases and the state afterwards."""
    bad = [n for n in numbers if n in result.of]
    views = {cases[n].view for n in numbers}
    choices = Choices(None)
    if bad and cases[bad[0]].view == "output":
        case = cases[bad[0]].wide  # rows are chosen by their number
        differs = case.illegal
        if case.exact:
            differs = ~same(case.seen, case.healthy) & case.valid[..., None, None]
        choices = Choices(*(t.flatten(2) for t in (differs, case.seen, case.healthy)))
    best: tuple[int, list[_TestedCase], dict[str, Any]] | None = None
    wanted = sum(result.of[n] for n in bad)
    while True:
        attempt = replace(parameters, random=choices, state=dict(parameters.state))
        predicted = predict(model, call, result.hypothesis, attempt, views)
        tested = [
            _tested(n, cases[n], predicted[cases[n].view], result.hypothesis, chosen=choices.used)
            for n in numbers
        ]
        explained = sum(int(one.mask.sum()) for one in tested)
        if best is None or explained > best[0]:
            best = explained, tested, attempt.state
        hopeless = choices.tries >= FEW_TRIES and not any(one.near for one in best[1])
        if not bad or explained == wanted or hopeless or not choices.advance():
            break
    result.chosen |= choices.used
    result.placed |= choices.placed
    return best[1], best[2]


def _tested(
    number: int, case: CallCase, predicted: Tensor, hypothesis: Hypothesis, *, chosen: bool
) -> _TestedCase:
    """Compare a prediction of a call's view with what was seen of it."""
    predicted = case.taken(predicted)
    unit = "block" if hypothesis.fault.unit == "block" else "row"
    counts = case.valid[..., None, None] if case.care is None else case.care
    changed = ~same(predicted, case.healthy) & counts
    nothing = torch.zeros_like(case.illegal)
    if not bool(changed.any()):
        return _TestedCase(number, predicted, nothing)
    units = case.whole_any(changed, unit)
    if not bool((changed & case.illegal).any()):
        # Nothing illegal in this call at all: the fault, if it is there, shows in this call where it changes nothing illegal.
        shows = bool((units & case.whole(same(predicted, case.seen) | ~changed, unit)).any())
        absent = not chosen and not shows and not case.fails
        return _TestedCase(number, predicted, nothing, predicted=int(units.sum()), absent=absent)
    agrees = case.agrees(predicted, lambda model: predict(model, case.call, hypothesis)["output"], unit)
    agrees_here = agrees & changed & case.illegal
    explained = case.whole(agrees | ~counts, unit) & case.whole_any(agrees_here, unit)
    mask = case.illegal & explained
    return _TestedCase(
        number,
        predicted,
        mask,
        near=int(agrees_here.sum()),
        exact=bool((same(predicted, case.seen) | ~mask).all()),
        predicted=int(units.sum()),
        shown=int((units & explained).sum()),
        nearby=int(units[(units & explained).flatten(1).any(-1)].sum()),
    )


def _add(result: Score, tested: _TestedCase) -> None:
    if tested.near:
        result.near += tested.near / result.of[tested.number] / len(result.of)
    if bool(tested.mask.any()):
        result.explained[tested.number] = tested.mask
        result.exact &= tested.exact
    result.predicted += tested.predicted
    result.shown += tested.shown
    result.nearby += tested.nearby
    result.absent += tested.absent
    result.prediction[tested.number] = tested.prediction

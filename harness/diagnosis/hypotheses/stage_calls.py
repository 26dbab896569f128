"""Which hypotheses explain what was seen: each prediction is compared with the observed output, unit by unit.

A unit (a block, a row) is healthy where all of it is legal, explained where all of it is what the fault predicts, and
contradicts the fault otherwise. The share of illegal elements that lie in explained units is the score.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.case import Case, same, whole, whole_any
from harness.diagnosis.cases.models import Model
from harness.diagnosis.cases.observation import MASKED_MOE, Observed
from harness.diagnosis.hypotheses.choices import FEW_TRIES, Choices
from harness.diagnosis.hypotheses.hypothesis import Failed, Hypothesis, predict, unharmed
from harness.diagnosis.hypotheses.planted_layer import Planted, is_inner
from harness.faults.fault import Parameters


@dataclass(eq=False)  # compared by identity: tensors have no single truth value
class Score:
    """How well one hypothesis explains the cases of its stages.

    Attributes:
        hypothesis: which.
        of: for each case with illegal elements of the fault's stages, how many.
        explained: for each case, the illegal elements in explained units.
        near: share of the illegal elements that agree, whatever the rest of their units does.
        exact: whether all explained elements agree bit for bit.
        predicted: units in which the fault would show.
        shown: of those, units that it explains.
        nearby: of those, units in the experts where it explains any: a fault of whole experts would show in all of them.
        absent: calls in which the fault would show, and in which nothing is illegal.
        chosen: whether the fault's random choices were fitted to what was seen.
        prediction: for each case, the predicted elements.
        inside: where in the weights the fault was found, in words; "" for everywhere.
    """

    hypothesis: Hypothesis
    of: dict[int, int]
    explained: dict[int, Tensor] = field(default_factory=dict)
    near: float = 0.0
    exact: bool = True
    predicted: int = 0
    shown: int = 0
    nearby: int = 0
    absent: int = 0
    chosen: bool = False
    prediction: dict[int, Tensor] = field(default_factory=dict)
    inside: str = ""

    @property
    def share(self) -> float:
        """Of all illegal elements of its stages; every case counts alike, since a block has fewer elements than a row."""
        return self.part(self.explained)

    def part(self, masks: Mapping[int, Tensor]) -> float:
        """Return the share that some masks are of the illegal elements of its stages."""
        return (
            sum(int(mask.sum()) / self.of[n] for n, mask in masks.items()) / len(self.of) if self.of else 0.0
        )

    def key(self) -> tuple[float, ...]:
        """Return what scores are ordered by, the best one largest."""
        coverage = self.shown / self.predicted if self.predicted else 0.0
        return (
            round(self.share, 4),
            float(self.exact),
            -float(self.hypothesis.fitted),
            -float(self.absent),
            -float(self.chosen),
            round(self.near, 4),
            self.shown / self.nearby if self.nearby and self.hypothesis.fault.unit == "expert" else 1.0,
            coverage,
        )


@dataclass(frozen=True)
class _Test:
    """What one prediction says about one case."""

    number: int
    mask: Tensor
    near: int
    exact: bool
    predicted: int
    shown: int
    absent: bool
    prediction: Tensor
    nearby: int = 0


def score(cases: list[Case], calls: list[Observed], hypothesis: Hypothesis) -> Score | None:  # noqa: C901 - one pass
    """Test one hypothesis on every case of its stages; None where it cannot be planted.

    Args:
        cases: the calls that are looked at; at least one has illegal elements.
        calls: all calls in order, for faults that remember earlier ones.
        hypothesis: what to test.
    """
    stages = hypothesis.fault.stages
    mine: dict[int, list[int]] = {}
    for number, case in enumerate(cases):
        if case.call.stage in stages:
            mine.setdefault(id(case.call), []).append(number)
    of = {n: int(cases[n].illegal.sum()) for numbers in mine.values() for n in numbers}
    result = Score(hypothesis, {n: count for n, count in of.items() if count})
    if not result.of:
        return None
    remembers = hypothesis.fault.unit == "call"
    if not remembers:  # calls with illegal elements first: most hypotheses end there
        calls = sorted(
            (c for c in calls if id(c) in mine), key=lambda c: not any(n in result.of for n in mine[id(c)])
        )
    parameters = hypothesis.parameters()
    some = cases[next(iter(result.of))].model
    for call in calls:
        if remembers and call.stage == MASKED_MOE and is_inner(hypothesis):
            # What a fault remembers of the stage calls inside a layer, none of which was seen.
            with contextlib.suppress(Failed), unharmed(call):
                Planted(some, hypothesis, parameters).masked_moe(**call.arguments)
            continue
        numbers = mine.get(id(call), [])
        if call.stage not in stages or not (numbers or remembers):
            continue
        if not remembers and not result.near and not any(n in result.of for n in numbers):
            break
        model = cases[numbers[0]].model if numbers else some
        try:
            tests, parameters.state = _best_choice(
                cases, numbers, call, hypothesis, model, parameters, result
            )
        except Failed:
            return None
        for test in tests:
            _add(result, test)
    return result


def _best_choice(
    cases: list[Case],
    numbers: list[int],
    call: Observed,
    hypothesis: Hypothesis,
    model: Model,
    parameters: Parameters,
    result: Score,
) -> tuple[list[_Test], dict[str, Any]]:
    """Predict one call, with the random choices that explain most of it; return the tests and the state afterwards."""
    bad = [n for n in numbers if n in result.of]
    views = {cases[n].view for n in numbers}
    choices = Choices(None)
    if bad and cases[bad[0]].view == "output":
        case = cases[bad[0]].wide  # rows are chosen by their number
        differs = (
            case.illegal if not case.exact else ~same(case.seen, case.healthy) & case.valid[..., None, None]
        )
        choices = Choices(*(t.flatten(2) for t in (differs, case.seen, case.healthy)))
    best: tuple[int, list[_Test], dict[str, Any]] | None = None
    wanted = sum(result.of[n] for n in bad)
    while True:
        attempt = Parameters(
            parameters.strength, choices, parameters.place_seed, parameters.weakest, dict(parameters.state)
        )
        predicted = predict(model, call, hypothesis, attempt, views)
        tests = [
            _test(n, cases[n], predicted[cases[n].view], hypothesis, chosen=choices.used) for n in numbers
        ]
        explained = sum(int(test.mask.sum()) for test in tests)
        if best is None or explained > best[0]:
            best = explained, tests, attempt.state
        hopeless = choices.tries >= FEW_TRIES and not any(test.near for test in best[1])
        if not bad or explained == wanted or hopeless or not choices.advance():
            break
    result.chosen |= choices.used
    return best[1], best[2]


def _test(number: int, case: Case, predicted: Tensor, hypothesis: Hypothesis, *, chosen: bool) -> _Test:
    predicted = case.taken(predicted)
    unit = "block" if hypothesis.fault.unit == "block" else "row"
    counts = case.valid[..., None, None] if case.care is None else case.care
    changed = ~same(predicted, case.healthy) & counts
    nothing = torch.zeros_like(case.illegal)
    if not bool(changed.any()):
        return _Test(number, nothing, 0, True, 0, 0, False, predicted)
    units = whole_any(changed, unit)
    if not bool((changed & case.illegal).any()):
        # Nothing illegal in this call at all: the fault, if it is there, shows in this call where it changes nothing illegal.
        shows = bool((units & whole(same(predicted, case.seen) | ~changed, unit)).any())
        absent = not chosen and not shows and not bool(case.illegal.any())
        return _Test(number, nothing, 0, True, int(units.sum()), 0, absent, predicted)
    agrees = case.agrees(predicted, hypothesis, unit)
    agrees_here = agrees & changed & case.illegal
    explained = whole(agrees | ~counts, unit) & whole_any(agrees_here, unit)
    mask = case.illegal & explained
    exact = bool((same(predicted, case.seen) | ~mask).all())
    nearby = int(units[(units & explained).flatten(1).any(-1)].sum())
    return _Test(
        number, mask, int(agrees_here.sum()), exact, int(units.sum()), int((units & explained).sum()), False, predicted, nearby,
    )  # fmt: skip


def _add(result: Score, test: _Test) -> None:
    if test.near:
        result.near += test.near / result.of[test.number] / len(result.of)
    if bool(test.mask.any()):
        result.explained[test.number] = test.mask
        result.exact &= test.exact
    result.predicted += test.predicted
    result.shown += test.shown
    result.nearby += test.nearby
    result.absent += test.absent
    result.prediction[test.number] = test.prediction

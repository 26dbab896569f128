"""Which hypotheses explain what was seen: each prediction is compared with the observed output, unit by unit.

A unit (a block, a row) is healthy where all of it is legal, explained where all of it is what the fault predicts, and
contradicts the fault otherwise. The share of illegal elements that lie in explained units is the score.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import STAGES
from harness.diagnosis.choices import FEW_TRIES, Choices
from harness.diagnosis.habits import UNWRITTEN, UNWRITTEN_CODE, learned_habits
from harness.diagnosis.hypotheses import Failed, Hypothesis, predict
from harness.diagnosis.layer import Planted, is_inner
from harness.diagnosis.models import Model
from harness.diagnosis.observation import MASKED_GEMM, MASKED_MOE, Observed
from harness.diagnosis.views import Bounds, decoded, seen, untouchable, valid
from harness.faults.fault import Parameters

_ENOUGH_AGREEMENT = 256  # elements that agree bit for bit before bit equality is demanded of a prediction
SMALL = 1 << 23  # multiplications below which nothing is screened


def same(a: Tensor, b: Tensor) -> Tensor:
    """Return where two outputs agree bit for bit, NaN with NaN and 0 with -0."""
    equal = a == b
    return equal | (a.isnan() & b.isnan()) if a.dtype.is_floating_point else equal


@dataclass
class Case:
    """A recorded call with illegal elements, and the right model that agrees with the candidate best.

    Attributes:
        call: what was seen.
        legal: which elements of it are legal.
        models: legal variants, the best one first.
        bounds: how the candidate computes.
        view: "output", "memory" or "inputs", see harness.diagnosis.views.seen.

    Raises:
        Failed: no right model takes the call's arguments.
    """

    call: Observed
    legal: Tensor
    models: list[Model]
    bounds: Bounds
    view: str = "output"
    exact: bool = False

    def __post_init__(self) -> None:
        self.valid = valid(self.call) if self.view == "output" else torch.ones(1, 1, dtype=torch.bool)
        self.seen = seen(self.call, self.view)
        # Of memory only what nobody may touch is judged; what the call stores there is the output's business.
        self.care: Tensor | None = untouchable(self.call, self.bounds.store_rows) if self.view == "memory" else None
        self._choose_model()

    @property
    def name(self) -> str:
        """The call and the view, in words."""
        what = {"output": "", "memory": ", memory around the output", "inputs": ", inputs"}[self.view]
        return self.call.name + what

    @property
    def model(self) -> Model:
        """The right model that hypotheses are planted in."""
        return self.models[0]

    @cached_property
    def illegal(self) -> Tensor:
        """Which elements of valid rows are illegal."""
        return ~self.legal & self.valid[..., None, None]

    @cached_property
    def slack(self) -> Tensor | None:
        """How far a legal GEMM output may lie from a prediction, apart from rounding; None for bytes."""
        if not self.seen.dtype.is_floating_point:
            return None
        if self.call.stage != MASKED_GEMM or self.view != "output":
            return torch.zeros(())
        a = self.call.arguments
        operands = [decoded(a[n], a[f"{n}_scale"]).abs().nan_to_num(0) for n in ("a", "b")]
        sums = torch.bmm(operands[0], operands[1].transpose(1, 2))
        if a.get("alpha") is not None:
            sums = sums * a["alpha"].reshape(-1, 1, 1).abs()
        return (sums * self.bounds.accumulator.units(operands[0].shape[-1])).unsqueeze(2)

    def _choose_model(self) -> None:
        """Put the model first that agrees with most legal elements."""
        healthy = self.valid & self.legal.all(-1).all(-1)  # rows: in a faulty one even legal elements may be wrong
        healthy = healthy[..., None, None].expand_as(self.legal)
        best, most, failure = 0, -1, None
        for number, model in enumerate(self.models[:3]):
            try:
                right = predict(model, self.call, None, views=(self.view,))[self.view]
            except Failed as error:
                failure = error
                continue
            if right.shape != self.seen.shape:
                failure = Failed("another shape")
                continue
            agreeing = int((same(right, self.seen) & healthy).sum())
            if agreeing > most:
                best, most, self.healthy = number, agreeing, right
            if agreeing == int(healthy.sum()):
                break
        if failure is not None and most < 0:
            raise failure
        self.wild = False
        if self.view == "output" and self.call.stage in STAGES:
            habits, self.wild = learned_habits(self.call, self.valid, self.seen)
            for model in self.models:
                model.habits = habits
        self.models = [self.models[best], *(m for i, m in enumerate(self.models) if i != best)]
        self.exact = int(healthy.sum()) >= _ENOUGH_AGREEMENT and most == int(healthy.sum())

    def screened(self, experts: int = 4) -> Case:
        """Return the case of a few failing rows of a few experts, whose predictions cost a fraction."""
        few = _spread(self.illegal.any(-1).any(-1), experts)
        part = copy.copy(self)
        part.__dict__.pop("illegal", None)
        part.valid = torch.zeros_like(self.valid)
        part.valid[few[:, 0], few[:, 1]] = True
        rows = {int(e): few[few[:, 0] == e, 1] for e in few[:, 0].unique()}
        part.models = [model.keep_to(rows) for model in self.models]
        return part

    def work(self) -> int:
        """Return about how many multiplications one prediction costs."""
        if self.call.stage == MASKED_GEMM:
            return self.seen.numel() * self.call.arguments["a"].shape[1] * 2
        return self.seen.numel()

    def agrees(self, predicted: Tensor, hypothesis: Hypothesis | None, unit: str) -> Tensor:
        """Return which elements are what was predicted, or a legal neighbour of it.

        Args:
            predicted: elements, under the hypothesis.
            hypothesis: for asking the other models where a few codes of a unit differ.
            unit: "block" or "row": within which elements belong together.
        """
        equal = same(predicted, self.seen)
        if self.care is not None:
            equal |= ~self.care
        if self.wild:  # what is never written holds anything: the candidate's padding does
            never = predicted[..., -1:] == UNWRITTEN
            every_code = (predicted[..., :-1] == UNWRITTEN_CODE).all(-1, keepdim=True)
            equal = torch.cat((equal[..., :-1] | (never & every_code), equal[..., -1:] | never), dim=-1)
        if self.exact or self.view != "output":
            return equal
        if self.slack is not None:
            return equal | self._near(predicted)
        doubtful = whole(equal.float().mean(-1, keepdim=True) >= 0.5, unit) & ~whole(equal, unit)
        if not bool((doubtful & whole_any(self.illegal, unit)).any()):
            return equal
        return equal | self._flipped(predicted, hypothesis)

    def _near(self, predicted: Tensor) -> Tensor:
        assert self.slack is not None  # noqa: S101 - asked by the caller
        p, o, h = predicted.float(), self.seen.float(), self.healthy.float()
        largest = p.abs().nan_to_num(0).amax(-1, keepdim=True)
        gain = (largest / h.abs().nan_to_num(0).amax(-1, keepdim=True).clamp(min=1e-30)).clamp(min=1.0)
        step = torch.finfo(self.seen.dtype).eps * torch.maximum(p.abs(), o.abs())
        near = (o - p).abs() <= self.slack * gain + step
        return near & (self.legal | ((o - p).abs() < (o - h).abs()))

    def _flipped(self, predicted: Tensor, hypothesis: Hypothesis | None) -> Tensor:
        """Return which bytes lie between what the models predict that store the same scale."""
        low, high = predicted.clone(), predicted.clone()
        for model in self.models[1:]:
            try:
                other = predict(model, self.call, hypothesis)["output"]
            except Failed:
                continue
            same_scale = other[..., -1:] == self.seen[..., -1:]
            takes = same_scale & (low[..., -1:] != self.seen[..., -1:])
            low, high = torch.where(takes, other, low), torch.where(takes, other, high)
            sign = (other >> 3) == (low >> 3)
            low = torch.where(same_scale & sign, torch.minimum(low, other), low)
            high = torch.where(same_scale & sign, torch.maximum(high, other), high)
        return (self.seen >= low) & (self.seen <= high)


def _spread(rows: Tensor, most: int) -> Tensor:
    """Choose a few of the rows that are True, `(n, 2)`: of several experts, first, middle and last ones."""
    experts = rows.any(-1).nonzero().flatten().tolist()
    chosen = []
    for expert in experts[:: max(1, len(experts) // most)][:most]:
        there = rows[expert].nonzero().flatten().tolist()
        places = sorted({0, len(there) // 2, len(there) - 1})
        chosen += [(expert, there[place]) for place in places]
    return torch.tensor(chosen)


def whole(mask: Tensor, unit: str) -> Tensor:
    """Return which units are True in all of their elements, `(groups, rows, cells or 1, 1)`."""
    cells = mask.all(-1, keepdim=True)
    return cells if unit == "block" else cells.all(-2, keepdim=True)


def whole_any(mask: Tensor, unit: str) -> Tensor:
    """Return which units are True in any of their elements, `(groups, rows, cells or 1, 1)`."""
    cells = mask.any(-1, keepdim=True)
    return cells if unit == "block" else cells.any(-2, keepdim=True)


@dataclass
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
        absent: calls in which the fault would show, and in which nothing is illegal.
        chosen: whether the fault's random choices were fitted to what was seen.
        prediction: for each case, the predicted elements.
    """

    hypothesis: Hypothesis
    of: dict[int, int]
    explained: dict[int, Tensor] = field(default_factory=dict)
    near: float = 0.0
    exact: bool = True
    predicted: int = 0
    shown: int = 0
    absent: int = 0
    chosen: bool = False
    prediction: dict[int, Tensor] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of all illegal elements of its stages; every case counts alike, since a block has fewer elements than a row."""
        return self.part(self.explained)

    def part(self, masks: Mapping[int, Tensor]) -> float:
        """Return the share that some masks are of the illegal elements of its stages."""
        return sum(int(mask.sum()) / self.of[n] for n, mask in masks.items()) / len(self.of) if self.of else 0.0

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


def score(cases: list[Case], calls: list[Observed], hypothesis: Hypothesis) -> Score | None:
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
        calls = sorted((c for c in calls if id(c) in mine), key=lambda c: not any(n in result.of for n in mine[id(c)]))
    parameters = hypothesis.parameters()
    some = cases[next(iter(result.of))].model
    for call in calls:
        if remembers and call.stage == MASKED_MOE and is_inner(hypothesis):
            # What a fault remembers of the stage calls inside a layer, none of which was seen.
            with contextlib.suppress(Exception):
                Planted(some, hypothesis, parameters).masked_moe(**call.arguments)
            continue
        numbers = mine.get(id(call), [])
        if call.stage not in stages or not (numbers or remembers):
            continue
        if not remembers and not result.near and not any(n in result.of for n in numbers):
            break
        model = cases[numbers[0]].model if numbers else some
        try:
            tests, parameters.state = _best_choice(cases, numbers, call, hypothesis, model, parameters, result)
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
        case = cases[bad[0]]
        differs = case.illegal if not case.exact else ~same(case.seen, case.healthy) & case.valid[..., None, None]
        choices = Choices(*(t.flatten(2) for t in (differs, case.seen, case.healthy)))
    best: tuple[int, list[_Test], dict[str, Any]] | None = None
    wanted = sum(result.of[n] for n in bad)
    while True:
        attempt = Parameters(
            parameters.strength, choices, parameters.place_seed, parameters.weakest, dict(parameters.state)
        )
        predicted = predict(model, call, hypothesis, attempt, views)
        tests = [_test(n, cases[n], predicted[cases[n].view], hypothesis, chosen=choices.used) for n in numbers]
        explained = sum(int(test.mask.sum()) for test in tests)
        if best is None or explained > best[0]:
            best = explained, tests, attempt.state
        hopeless = choices.tries >= FEW_TRIES and not any(test.near for test in best[1])
        if not bad or explained == wanted or hopeless or not choices.advance():
            break
    result.chosen |= choices.used
    return best[1], best[2]


def _test(number: int, case: Case, predicted: Tensor, hypothesis: Hypothesis, *, chosen: bool) -> _Test:
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
    return _Test(
        number, mask, int(agrees_here.sum()), exact, int(units.sum()), int((units & explained).sum()), False, predicted
    )  # fmt: skip


def _add(result: Score, test: _Test) -> None:
    if test.near:
        result.near += test.near / result.of[test.number] / len(result.of)
    if bool(test.mask.any()):
        result.explained[test.number] = test.mask
        result.exact &= test.exact
    result.predicted += test.predicted
    result.shown += test.shown
    result.absent += test.absent
    result.prediction[test.number] = test.prediction

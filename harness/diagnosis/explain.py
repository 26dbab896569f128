"""Which hypotheses explain what was seen: each prediction is compared with the observed output, unit by unit.

A unit (a block, a row) is healthy where all of it is legal, explained where all of it is what the fault predicts, and
contradicts the fault otherwise. The share of illegal elements that lie in explained units is the score.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from harness.diagnosis.hypotheses import Failed, Hypothesis, predict
from harness.diagnosis.models import Model
from harness.diagnosis.observation import MASKED_GEMM, QUANTIZERS, Observed
from harness.diagnosis.views import Bounds, decoded, seen, valid

_ENOUGH_AGREEMENT = 256  # elements that agree bit for bit before bit equality is demanded of a prediction
_SMALL = 1 << 23  # multiplications below which nothing is screened


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
        models: legal variants, the best one first (after `choose_model`).
        bounds: how the candidate computes.
    """

    call: Observed
    legal: Tensor
    models: list[Model]
    bounds: Bounds
    exact: bool = False

    def __post_init__(self) -> None:
        self.valid = valid(self.call)
        self.seen = seen(self.call)
        self._choose_model()

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
        if self.call.stage in QUANTIZERS:
            return None
        if self.call.stage != MASKED_GEMM:
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
        best, most = 0, -1.0
        for number, model in enumerate(self.models[:3]):
            right = predict(model, self.call, None)
            agreeing = int((same(right, self.seen) & healthy).sum())
            if agreeing > most:
                best, most, self.healthy = number, agreeing, right
            if agreeing == int(healthy.sum()):
                break
        self.models = [self.models[best], *(m for i, m in enumerate(self.models) if i != best)]
        self.exact = int(healthy.sum()) >= _ENOUGH_AGREEMENT and most == int(healthy.sum())

    def screened(self) -> Case:
        """Return the case of a few failing rows, whose predictions cost a fraction; itself where it is small."""
        few = _spread(self.illegal.any(-1).any(-1))
        if few is None or self.work() < _SMALL:
            return self
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
        if self.exact:
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
                other = predict(model, self.call, hypothesis)
            except Failed:
                continue
            same_scale = other[..., -1:] == self.seen[..., -1:]
            takes = same_scale & (low[..., -1:] != self.seen[..., -1:])
            low, high = torch.where(takes, other, low), torch.where(takes, other, high)
            sign = (other >> 3) == (low >> 3)
            low = torch.where(same_scale & sign, torch.minimum(low, other), low)
            high = torch.where(same_scale & sign, torch.maximum(high, other), high)
        return (self.seen >= low) & (self.seen <= high)


def _spread(rows: Tensor) -> Tensor | None:
    """Choose a few of the rows that are True, `(n, 2)`: of several experts, first, middle and last ones."""
    experts = rows.any(-1).nonzero().flatten().tolist()
    chosen = []
    for expert in experts[:: max(1, len(experts) // 4)][:4]:
        there = rows[expert].nonzero().flatten().tolist()
        places = sorted({0, len(there) // 2, len(there) - 1})
        chosen += [(expert, there[place]) for place in places]
    return torch.tensor(chosen) if len(chosen) < int(rows.sum()) else None


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
        explained: for each case, the illegal elements in explained units.
        near: share of the illegal elements that agree, whatever the rest of their units does.
        of: for each case of the fault's stages, its illegal elements.
        exact: whether all explained elements agree bit for bit.
        predicted: units in which the fault would show.
        shown: of those, units that it explains.
        prediction: for each case, the predicted elements.
    """

    hypothesis: Hypothesis
    explained: dict[int, Tensor] = field(default_factory=dict)
    near: float = 0.0
    of: dict[int, int] = field(default_factory=dict)
    exact: bool = True
    predicted: int = 0
    shown: int = 0
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
            float(not self.hypothesis.fitted),
            round(self.near, 4),
            coverage,
        )


def score(cases: list[Case], calls: list[Observed], hypothesis: Hypothesis) -> Score | None:
    """Test one hypothesis on every case of its stages; None where it cannot be planted.

    Args:
        cases: calls with illegal elements.
        calls: all calls in order, for faults that remember earlier ones.
        hypothesis: what to test.
    """
    stages = hypothesis.fault.stages
    mine = {id(case.call): number for number, case in enumerate(cases) if case.call.stage in stages}
    if not mine:
        return None
    result = Score(hypothesis, of={n: int(cases[n].illegal.sum()) for n in mine.values()})
    parameters = hypothesis.parameters()
    unit = "block" if hypothesis.fault.unit == "block" else "row"
    for call in calls:
        number = mine.get(id(call))
        if number is None and (call.stage not in stages or not parameters.state):
            continue
        try:
            predicted = predict(cases[number or 0].model, call, hypothesis, parameters)
        except Failed:
            return None
        if number is not None:
            _test(result, number, cases[number], predicted, unit)
    return result if result.near else None


def _test(result: Score, number: int, case: Case, predicted: Tensor, unit: str) -> None:
    changed = ~same(predicted, case.healthy) & case.valid[..., None, None]
    if not bool((changed & case.illegal).any()):
        return
    agrees = case.agrees(predicted, result.hypothesis, unit)
    agrees_here = agrees & changed & case.illegal
    explained = whole(agrees | ~case.valid[..., None, None], unit) & whole_any(agrees_here, unit)
    mask = case.illegal & explained
    result.near += int(agrees_here.sum()) / result.of[number] / len(result.of)
    if bool(mask.any()):
        result.explained[number] = mask
        result.exact &= bool((same(predicted, case.seen) | ~mask).all())
    units = whole_any(changed, unit)
    result.predicted += int(units.sum())
    result.shown += int((units & explained).sum())
    result.prediction[number] = predicted

"""One recorded call as a case: what was seen, what is right there, and when a prediction agrees with what was seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from harness.candidates.protocol import STAGES
from harness.diagnosis.cases.around import legal_around, loaded_pieces
from harness.diagnosis.cases.habits import UNWRITTEN, UNWRITTEN_CODE, Habits, learned_habits
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.models import Model
from harness.diagnosis.cases.observation import MASKED_GEMM, Observed
from harness.diagnosis.cases.replay import ReplayError, replayed
from harness.diagnosis.cases.transported import same_scales
from harness.diagnosis.cases.views import decoded, same, seen, untouchable, valid

_BFLOAT16_BITS = 8
_ENOUGH_AGREEMENT = 256  # elements that agree bit for bit before bit equality is demanded of a prediction
_NEARLY_EQUAL = (
    0.9  # of a row's elements, where a model that agrees bit for bit may round a few others otherwise
)
_SCREENED_EXPERTS = 4
_QUANTIZED = 32  # multiplications that an element costs to quantize
SMALL = 1 << 23  # multiplications below which nothing is screened


@dataclass(eq=False)
class CallCase:
    """A recorded call, which of its elements are illegal, and the right model that agrees with the candidate best.

    Attributes:
        call: what was seen.
        legal: which elements of it are legal.
        models: legal variants, the best one first.
        bounds: how the candidate computes.
        view: "output", "memory" or "inputs", see harness.diagnosis.cases.views.elements.
        known_habits: what the candidate leaves in padding, where another call shows it better.
        refused: why a right implementation refuses the call; then all that came back is illegal.
        seen_as: elements in place of those that were seen: where arithmetic is free, a legal value is taken for the model's.
        between: the ends of what each element may be, where a combine leaves it open; None where there is one value.
        exact: whether the model agrees with the candidate bit for bit where nothing is wrong.
        valid: `(groups, rows)` bool, rows that count.
        seen: the observed elements; `healthy`, the model's.
        care: of memory, what nobody may touch; None where all elements of valid rows are judged.
        wild: whether padding may hold anything, since the candidate's does.
        of_few_rows: whether it is kept to a few rows (`screened`).
        kept: the groups and rows that its tensors hold, of all that a call has; None for all.
        pieces: how rows are cut in pieces, each of which counts as a row of its tensors; None where they are not.
        wide: the same case with all of them.

    Raises:
        ReplayError: no right model takes the call's arguments.
    """

    call: Observed
    legal: Tensor
    models: list[Model]
    bounds: Bounds
    view: str = "output"
    known_habits: tuple[Habits, bool] | None = None
    refused: str = ""
    seen_as: Tensor | None = None
    between: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        self.exact = self.wild = self.of_few_rows = False
        self.kept: tuple[Tensor, Tensor] | None = None
        self.wide = self
        self.valid = valid(self.call) if self.view == "output" else torch.ones(1, 1, dtype=torch.bool)
        self.pieces = loaded_pieces(self.call.stage, self.call.output) if self.view == "output" else None
        self.seen = seen(self.call, self.view) if self.seen_as is None else self.seen_as
        self.care: Tensor | None = None
        if self.view == "memory":  # what the call stores in its output is the business of the output's view
            self.care = untouchable(self.call, self.bounds.store_rows)
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
    def failing(self) -> Tensor:
        """Which rows hold illegal elements, `(groups, rows)` bool."""
        return self.illegal.any(-1).any(-1)

    @property
    def fails(self) -> bool:
        """Whether anything is illegal."""
        return bool(self.failing.any())

    @cached_property
    def slack(self) -> Tensor | None:
        """How far a legal GEMM output may lie from a prediction, apart from rounding; None for bytes."""
        if not self.seen.dtype.is_floating_point:
            return None
        if self.call.stage != MASKED_GEMM or self.view != "output":
            return torch.zeros(())
        a = self.call.arguments
        operands = [
            decoded(a[n], a[f"{n}_scale"], form).abs().nan_to_num(0)
            for n, form in zip("ab", self.call.forms, strict=True)
        ]
        sums = torch.bmm(operands[0], operands[1].transpose(1, 2))
        if a.get("alpha") is not None:
            sums = sums * a["alpha"].reshape(-1, 1, 1).abs()
        return self.taken((sums * self.bounds.accumulator.units(operands[0].shape[-1])).unsqueeze(2))

    def _choose_model(self) -> None:
        """Put the model first that agrees with most legal elements."""
        rows = self.valid & self.legal.all(-1).all(-1)  # in a faulty one even legal elements may be wrong
        healthy = rows[..., None, None].expand_as(self.legal)
        if self.refused:
            self.healthy = torch.full_like(self.seen, torch.nan)
            return
        best, most, failure = 0, -1, None
        for number, model in enumerate(self.models[:3]):
            try:
                right = replayed(model, self.call, (self.view,))[self.view]
            except ReplayError as error:
                failure = error
                continue
            if right.shape != self.seen.shape:
                failure = ReplayError("another shape")
                continue
            agreeing = int((same(right, self.seen) & healthy).sum())
            if agreeing > most:
                best, most, self.healthy = number, agreeing, right
            if agreeing == int(healthy.sum()):
                break
        if failure is not None and most < 0:
            raise failure
        if self.view == "output" and self.call.stage in STAGES:
            self._learn_habits()
        self.models = [self.models[best], *(m for i, m in enumerate(self.models) if i != best)]
        self.exact = int(healthy.sum()) >= _ENOUGH_AGREEMENT and most == int(healthy.sum())

    def _learn_habits(self) -> None:
        """Let the models leave in padding what the candidate leaves there."""
        habits, self.wild = self.known_habits or (Habits(), False)
        if self.known_habits is None or habits == Habits():
            habits, self.wild = learned_habits(self.call, self.valid, self.seen, self.healthy)
        for model in self.models:
            model.habits = habits

    def screened(self) -> Self:
        """Return the case of a few failing rows of a few experts: what is predicted and compared costs a fraction."""
        wide = self._few_rows(_SCREENED_EXPERTS)
        part = copy.copy(wide)
        there = wide.valid.nonzero()
        part.kept = torch.unique(there[:, 0]), torch.unique(there[:, 1])
        part.wide = wide
        part.seen, part.healthy, part.legal, part.valid = (
            part.taken(t) for t in (wide.seen, wide.healthy, wide.legal, wide.valid)
        )
        if wide.pieces is not None:
            part.pieces = wide.pieces.taken(part.kept[1])
        return part

    def _few_rows(self, experts: int) -> Self:
        """Return the case kept to a few failing rows, in tensors of the same shapes."""
        few = _spread(self.failing, experts)
        part = copy.copy(self)
        for name in ("illegal", "failing", "slack"):
            part.__dict__.pop(name, None)
        part.of_few_rows = True
        part.wide = part
        part.valid = torch.zeros_like(self.valid)
        part.valid[few[:, 0], few[:, 1]] = True
        rows = {int(e): few[few[:, 0] == e, 1] for e in torch.unique(few[:, 0])}
        part.models = [model.keep_to(rows) for model in self.models]
        return part

    def taken(self, elements: Tensor) -> Tensor:
        """Return the groups and rows of a call's elements that the case is kept to."""
        return elements if self.kept is None else elements[self.kept[0]][:, self.kept[1]]

    def whole(self, mask: Tensor, unit: str) -> Tensor:
        """Return which units are True in all of their elements, `(groups, rows, cells or 1, 1)`.

        Args:
            mask: `(groups, rows, cells, elements)` bool.
            unit: "block" or "row".
        """
        return ~self.whole_any(~mask, unit)

    def whole_any(self, mask: Tensor, unit: str) -> Tensor:
        """Return which units are True in any of their elements, as `whole` does."""
        cells = mask.any(-1, keepdim=True)
        if unit == "block":
            return cells
        rows = cells.any(-2, keepdim=True)
        return rows if self.pieces is None else self.pieces.any(rows)

    def by_rows(self, mask: Tensor) -> Tensor:
        """Return a mask of the case's elements, or of its rows, with the pieces of each row side by side."""
        return mask if self.pieces is None else self.pieces.of_rows(mask)

    def work(self) -> int:
        """Return about how many multiplications one prediction costs."""
        if self.call.stage == MASKED_GEMM:
            return self.seen.numel() * int(self.call.arguments["b"].shape[1]) * 2
        return self.seen.numel() * (_QUANTIZED if self.call.has_codes else 1)

    def agrees(self, predicted: Tensor, of_model: Callable[[Model], Tensor], unit: str) -> Tensor:
        """Return which elements are what was predicted, or a legal neighbour of it.

        Args:
            predicted: elements, of the first model.
            of_model: what another model predicts, asked where a few codes of a unit differ; may raise ReplayError.
            unit: "block" or "row": within which elements belong together.
        """
        if self.refused:
            return legal_around(self.call.stage, self.call.arguments, self.seen, predicted)
        equal = same(predicted, self.seen) | self._free(predicted)
        if self.view != "output":
            return equal
        if self.exact:
            return equal if self.call.stage != MASKED_GEMM else equal | self._flipped_sums(predicted, equal)
        if self.slack is not None:
            return equal | self._near(predicted)
        doubtful = self.whole(equal.float().mean(-1, keepdim=True) >= 0.5, unit) & ~self.whole(equal, unit)
        if not bool((doubtful & self.whole_any(self.illegal, unit)).any()):
            return equal
        return equal | self._flipped(predicted, of_model)

    def _free(self, predicted: Tensor) -> Tensor:
        """Return which elements need not be as predicted, since the contract leaves them open or nobody reads them."""
        free = torch.zeros_like(predicted, dtype=torch.bool)
        if self.call.stage == "dispatch":  # scales that are never written hold anything
            free |= predicted.isnan() | same_scales(self.call.arguments, self.seen, predicted)
        if self.call.stage == "load_experts":  # a product of scales may be rounded in another order
            free |= legal_around(self.call.stage, self.call.arguments, self.seen, predicted)
        if self.between is not None:
            free |= self._as_legal(predicted)
        if self.care is not None:
            free |= ~self.care
        if self.wild:  # what is never written holds anything: the candidate's padding does
            never = predicted[..., -1:] == UNWRITTEN
            every_code = (predicted[..., :-1] == UNWRITTEN_CODE).all(-1, keepdim=True)
            free = torch.cat((free[..., :-1] | (never & every_code), free[..., -1:] | never), dim=-1)
        return free

    def _as_legal(self, predicted: Tensor) -> Tensor:
        """Return which elements are legal and predicted to be, or nearer to the prediction than to right, within a rounding.

        A kernel's float32 may be rounded to the other neighbour in bfloat16 than the fault's float64.
        """
        assert self.between is not None  # noqa: S101 - asked by the caller
        low, high = map(self.taken, self.between)
        unit = torch.ldexp(torch.ones_like(predicted), torch.frexp(predicted)[1] - _BFLOAT16_BITS)
        off = (self.seen - predicted).abs()
        near = (off <= unit + (high - low)) & (off < (self.seen - self.healthy).abs())
        return near | (self.legal & (predicted >= low) & (predicted <= high))

    def _flipped_sums(self, predicted: Tensor, equal: Tensor) -> Tensor:
        """Return which elements of rows that are nearly all as predicted, bit for bit, are so up to the order of addition.

        A model that agrees where all is well may round otherwise what a fault makes of it: a tie of one element in
        hundreds, which must not cost a row.
        """
        mostly = self.whole_any(~equal, "row") & (equal.float().mean(-1, keepdim=True) >= _NEARLY_EQUAL)
        return self._near(predicted) & mostly if bool(mostly.any()) else torch.zeros_like(equal)

    def _near(self, predicted: Tensor) -> Tensor:
        assert self.slack is not None  # noqa: S101 - asked by the caller
        p, o, h = predicted.float(), self.seen.float(), self.healthy.float()
        largest = p.abs().nan_to_num(0).amax(-1, keepdim=True)
        gain = (largest / h.abs().nan_to_num(0).amax(-1, keepdim=True).clamp(min=1e-30)).clamp(min=1.0)
        step = torch.finfo(self.seen.dtype).eps * torch.maximum(p.abs(), o.abs())
        near = (o - p).abs() <= self.slack * gain + step
        return near & (self.legal | ((o - p).abs() < (o - h).abs()))

    def _flipped(self, predicted: Tensor, of_model: Callable[[Model], Tensor]) -> Tensor:
        """Return which bytes lie between what the models predict that store the same scale."""
        low, high = predicted.clone(), predicted.clone()
        for model in self.models[1:]:
            try:
                other = self.taken(of_model(model))
            except ReplayError:
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

"""The operands that tell how a GEMM adds, what a candidate made of them, and which models give those bits.

The operands are random numbers, plain ones and ones whose exponents lie far apart, and in half of the rows the second half
of k takes back the first: what is left there is nothing but what the unit lost, and that differs from model to model
also where outputs are bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import islice

import torch
from torch import Tensor

from harness.judging.cuts import cut_sets, fitting, same, streams, table_of
from harness.judging.predicted import operands, orders_of
from harness.judging.probe_operands import BOTH_NVFP4, Forms
from reference.formats import Coded
from reference.matrix_units import Operand, Summation, matmul
from reference.matrix_units.order import LANE

COLUMNS = 64
_FEW = 16  # elements that are asked first
_MOST_CUTS = 8  # that give those and are asked for all
_PARTIALS = ("bfloat16", "float16")


@dataclass(frozen=True)
class Probe:
    """Operands of one k, and what the candidate made of them.

    Attributes:
        a: `(rows, k)`.
        b: `(columns, k)`.
        out: `(rows, columns)`.
        finish: what the candidate's epilogue makes of float32 sums.
        forms: of a and b.
    """

    a: Coded
    b: Coded
    out: Tensor
    finish: Callable[[Tensor], Tensor]
    forms: Forms = BOTH_NVFP4

    @property
    def k(self) -> int:
        """Elements along k."""
        return self.a.codes.shape[1]

    def rows(self, rows: slice) -> Probe:
        """Return some of the rows."""
        return replace(self, a=self.a.map(lambda t: t[rows]), out=self.out[rows])

    def operands(self, summation: Summation) -> tuple[Operand, Operand]:
        """Return both operands as a unit takes them."""
        key = summation.takes_scales
        if key not in self._operands:
            left, right = (
                (form.values(side, torch.float64), side.block_scale)
                for form, side in zip(self.forms, (self.a, self.b), strict=True)
            )
            self._operands[key] = operands(summation, self.forms, left, right)
        return self._operands[key]

    @cached_property
    def _operands(self) -> dict[bool, tuple[Operand, Operand]]:
        return {}

    @cached_property
    def _tables(self) -> dict[tuple[str, int], tuple[Tensor, int]]:
        return {}

    @cached_property
    def _at(self) -> tuple[Tensor, Tensor]:
        """Rows of all kinds and columns of the elements that are asked first."""
        index = torch.arange(_FEW)
        return index * 5 % len(self.out), index * 7 % self.out.shape[1]

    def table(self, summation: Summation) -> tuple[Tensor, int]:
        """Return the sums of every stretch of k of a few elements, and its step."""
        key = (summation.name, summation.lanes)
        if key not in self._tables:
            a, b = self.operands(summation)
            self._tables[key] = table_of(summation, a.at(self._at[0]), b.at(self._at[1]))
        return self._tables[key]

    def fits(self, model: Summation) -> bool:
        """Return whether a model gives every bit."""
        model = replace(model, later=())
        stored = self.out[self._at]
        if model.promote:  # no table: on a few elements by pairs
            a, b = self.operands(model)
            where = torch.zeros(_FEW, _FEW, dtype=torch.bool)
            where.fill_diagonal_(True)
            first = self.finish(model.chosen(a.at(self._at[0]), b.at(self._at[1]), where))
            return bool(same(first, stored).all()) and self._all(model)
        table, step = self.table(model)
        if model.stream:
            sets = [cuts for cuts in cut_sets(len(table)) if cuts]
            some = islice(fitting(table, stored, self.finish, sets, "stream"), _MOST_CUTS)
            return any(self._streams(model, tuple(step * cut for cut in cuts)) for cuts in some)
        order = model.order(self.k)
        if any(cut % step for cut in order.cuts):
            return self._all(model)
        manner = "pairwise" if order.pairwise else "last first" if order.reverse else "in order"
        cuts = tuple(cut // step for cut in order.cuts)
        partial = getattr(torch, order.partial)
        return bool(list(fitting(table, stored, self.finish, [cuts], manner, partial))) and self._all(model)

    def _all(self, model: Summation) -> bool:
        return bool(same(self.finish(model.matmul(*self.operands(model))), self.out).all())

    def _streams(self, model: Summation, cuts: tuple[int, ...]) -> bool:
        """Return whether parts that are added in the output's type give every bit."""
        order = replace(model.order(self.k), cuts=())
        a, b = self.operands(model)
        ends = zip((0, *cuts), (*cuts, self.k), strict=True)
        parts = torch.stack(
            [matmul(model.unit, a.along_k(*at), b.along_k(*at), order).flatten() for at in ends]
        )
        return bool(streams(self.finish(parts), self.out.flatten())[0].any())

    def fitting(self, models: Iterable[Summation]) -> list[Summation]:
        """Return the models that give every bit; many orders are one at a small k."""
        seen: dict[object, bool] = {}
        found = []
        for model in models:
            same = (model.name, model.order(self.k), model.stream)
            if same not in seen:
                seen[same] = self.fits(model)
            if seen[same]:
                found.append(model)
        return found


@cache
def models(names: tuple[str, ...], orders: frozenset[str], k: int) -> list[Summation]:
    """Return the models with float32 partial sums, the simplest first.

    Args:
        names: of units.
        orders: units of which every order is tried; of the others but "exact" the simple ones.
        k: the largest that is asked for.
    """
    one_pass = [Summation(name) for name in names]
    others = [order for plain in one_pass if plain.name != "exact" for order in orders_of(plain, k)[1:]]
    return one_pass + [
        order
        for order in others
        if order.name in orders or not (order.promote or order.pairwise or order.reverse or order.lanes > 1)
    ]


def narrow_models(base: Summation, k: int) -> list[Summation]:
    """Return the models of a unit whose partial sums are rounded to a narrower type and added in float32."""
    turn = LANE * base.lanes  # a kernel cuts k where all its lanes have had their turn
    split = [
        order
        for order in orders_of(base, k)[1:]
        if not order.promote
        and order.lanes == base.lanes
        and not any(cut % turn for cut in order.order(k).cuts)
    ]
    return [replace(order, partial=partial) for partial in _PARTIALS for order in split]

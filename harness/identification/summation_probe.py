"""The operands that tell how a GEMM adds, what a candidate made of them, and which models give those bits.

The operands are random numbers, plain ones and ones whose exponents lie far apart, and in half of the rows the second half
of k takes back the first: what is left there is nothing but what the unit lost, and that differs from model to model
also where outputs are bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import islice

import torch
from torch import Tensor

from harness.judging.cuts import MOST_PARTS, cut_sets, fitting, in_order, same, streams, table_of
from harness.judging.predicted import operands as operands_of
from harness.judging.predicted import orders_of
from harness.judging.probe_operands import Forms, operands
from reference.formats import Coded
from reference.matrix_units import Operand, Summation, matmul
from reference.matrix_units.order import KOrder

COLUMNS = 64
_FEW = 16  # elements that are asked first
_MOST_CUTS = 8  # that give those and are asked for all
_PARTIALS = ("bfloat16", "float16")


class Asked:
    """Operands of one k, and what any model makes of them, which is worked out once a process for all candidates.

    Args:
        a: `(rows, k)`.
        b: `(columns, k)`.
        forms: of a and b.
    """

    def __init__(self, a: Coded, b: Coded, forms: Forms) -> None:
        self.a, self.b, self._forms = a, b, forms
        index = torch.arange(_FEW)
        self.few = index * 5 % len(a.codes), index * 7 % len(b.codes)
        """Rows of all kinds and columns of the elements that are asked first."""
        self._operands: dict[bool, tuple[Operand, Operand]] = {}
        self._tables: dict[tuple[str, int, int], tuple[Tensor, int]] = {}
        self._first: dict[tuple[str, KOrder], Tensor | None] = {}
        self._sums: dict[Summation, Tensor] = {}

    @property
    def k(self) -> int:
        """Elements along k."""
        return self.a.codes.shape[1]

    def rows(self, rows: slice) -> Asked:
        """Return some of the rows."""
        return Asked(self.a.map(lambda t: t[rows]), self.b, self._forms)

    def operands(self, summation: Summation) -> tuple[Operand, Operand]:
        """Return both operands as a unit takes them."""
        key = summation.takes_scales
        if key not in self._operands:
            left, right = (
                (form.values(side, torch.float64), side.block_scale)
                for form, side in zip(self._forms, (self.a, self.b), strict=True)
            )
            self._operands[key] = operands_of(summation, self._forms, left, right)
        return self._operands[key]

    def table(self, summation: Summation) -> tuple[Tensor, int]:
        """Return the sums of every stretch of k of a few elements, and its step."""
        key = (summation.name, summation.lanes, summation.turn)
        if key not in self._tables:
            a, b = self.operands(summation)
            self._tables[key] = table_of(summation, a.at(self.few[0]), b.at(self.few[1]))
        return self._tables[key]

    def first(self, model: Summation) -> Tensor | None:
        """Return the sums of a few elements, float32; None where the table does not have the order of the model."""
        order = model.order(self.k)
        if (model.name, order) not in self._first:
            self._first[model.name, order] = in_order(*self.table(model), order)
        return self._first[model.name, order]

    def not_refuted(
        self, models: Sequence[Summation], accepts: Callable[[Tensor], Tensor]
    ) -> list[Summation]:
        """Return the models that a few elements do not refute: most are refuted by them.

        Args:
            models: without streams.
            accepts: which sums of the few elements, `(models, elements)` float32, are right.
        """
        first = [self.first(model) for model in models]
        known = [sums for sums in first if sums is not None]
        right = iter(accepts(torch.stack(known)).all(-1).tolist() if known else ())
        return [model for model, sums in zip(models, first, strict=True) if sums is None or next(right)]

    def sums(self, model: Summation) -> Tensor:
        """Return all sums, `(rows, columns)` float32."""
        if model not in self._sums:
            self._sums[model] = model.matmul(*self.operands(model))
        return self._sums[model]


@lru_cache(maxsize=12)
def asked(rows: int, columns: int, k: int, forms: Forms) -> Asked:
    """Return the operands that are drawn for a k; of those that were asked last what is known of them stays."""
    return Asked(*operands(rows, columns, k, forms), forms)


@dataclass(frozen=True)
class Probe:
    """What a candidate made of the operands of one k.

    Attributes:
        asked: the operands.
        out: `(rows, columns)`.
        finish: what the candidate's epilogue makes of float32 sums.
    """

    asked: Asked
    out: Tensor
    finish: Callable[[Tensor], Tensor]

    @property
    def k(self) -> int:
        """Elements along k."""
        return self.asked.k

    def rows(self, rows: slice) -> Probe:
        """Return some of the rows."""
        return replace(self, asked=self.asked.rows(rows), out=self.out[rows])

    def fits(self, model: Summation) -> bool:
        """Return whether a model gives every bit."""
        model = replace(model, later=())
        if model.stream:
            stored = self.out[self.asked.few]
            table, step = self.asked.table(model)
            sets = [cuts for cuts in cut_sets(len(table)) if cuts]
            some = islice(fitting(table, stored, self.finish, sets, "stream"), _MOST_CUTS)
            return any(self._streams(model, tuple(step * cut for cut in cuts)) for cuts in some)
        if len(model.order(self.k).cuts) >= MOST_PARTS:
            return False  # as many parts are added in registers: that order has its own name
        return bool(same(self.finish(self.asked.sums(model)), self.out).all())

    def _streams(self, model: Summation, cuts: tuple[int, ...]) -> bool:
        """Return whether parts that are added in the output's type give every bit."""
        order = replace(model.order(self.k), cuts=())
        a, b = self.asked.operands(model)
        ends = zip((0, *cuts), (*cuts, self.k), strict=True)
        parts = torch.stack(
            [matmul(model.unit, a.along_k(*at), b.along_k(*at), order).flatten() for at in ends]
        )
        return bool(streams(self.finish(parts), self.out.flatten())[0].any())

    def fitting(self, models: Iterable[Summation]) -> list[Summation]:
        """Return the models that give every bit; many orders are one at a small k."""
        models = list(models)
        kinds = [(model.name, model.order(self.k), model.stream) for model in models]
        single = dict(zip(kinds, models, strict=True))
        stored = self.out[self.asked.few]
        left = self.asked.not_refuted(
            [model for model in single.values() if not model.stream],
            lambda sums: same(self.finish(sums), stored),
        )
        possible = {*left, *(model for model in single.values() if model.stream)}
        fits = {kind: model in possible and self.fits(model) for kind, model in single.items()}
        return [model for model, kind in zip(models, kinds, strict=True) if fits[kind]]


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
    turn = base.turn * base.lanes  # a kernel cuts k where all its lanes have had their turn
    split = [
        order
        for order in orders_of(base, k)[1:]
        if not order.promote
        and (order.lanes, order.turn) == (base.lanes, base.turn)
        and not any(cut % turn for cut in order.order(k).cuts)
    ]
    return [replace(order, partial=partial) for partial in _PARTIALS for order in split]

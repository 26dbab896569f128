"""What the final sum of a routed layer comes to, in its own order, and in every order that is legal.

Rules: ROUTED-2 (order and roundings), ROUTED-3 (any order). Derivation: docs/routed.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.final_sum import FinalSum
from reference.intervals import Interval

MOST_ORDERED = 1 << 26
"""Elements over all orders up to which every order of a sum is tried; beyond, the sum is bounded."""
_UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_LEAST = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134, torch.float16: 2.0**-25}
"""Largest error of one rounding to a type: relative to what is rounded, and of subnormal numbers."""


@dataclass(frozen=True)
class RoutedSum:
    """The final sum of some tokens.

    Attributes:
        way: order and roundings.
        weights: `(tokens, topk)` float32, routing weights; negative ones in the sum itself only.
        topk_idx: `(tokens, topk)` integer, experts.
        there: `(tokens, topk)` bool, slots that count.
        start: `(tokens, hidden)`, what the output held; its type is that of the output.
    """

    way: FinalSum
    weights: Tensor
    topk_idx: Tensor
    there: Tensor
    start: Tensor

    @property
    def factors(self) -> Tensor:
        """What the sum itself multiplies rows with: the weights, or ones where they have entered before."""
        return self.weights if self.way.weight == "sum" else torch.ones_like(self.weights)

    def slot_order(self) -> Tensor:
        """Return the slots of each token in a fixed order of the sum, those that do not count last, `(tokens, topk)` int64."""
        slot = torch.arange(self.there.shape[1], device=self.there.device).expand(self.there.shape)
        key = self.topk_idx.long() if self.way.order == "experts" else slot
        return key.masked_fill(~self.there, torch.iinfo(torch.int64).max).sort(dim=-1, stable=True).indices

    def total(self, rows: Tensor, *, fused: bool = False) -> Tensor:
        """Return the sums in the fixed order, or, of `any`, in that of the slots.

        Args:
            rows: `(tokens, topk, hidden)`, of the output's type.
            fused: multiply and add with one rounding, as compilers contract it to FMA; else the product is rounded as well.

        Returns:
            `(tokens, hidden)` of the output's type. A token without a slot that counts keeps what the sum began with.

        Rule: ROUTED-2.
        """
        return self._added(self._terms(rows), range(rows.shape[1]), fused=fused)

    def legal(self, low: Tensor, high: Tensor) -> Interval:
        """Return the range of the sums in every legal order, with and without FMA.

        Args:
            low: `(tokens, topk, hidden)` of the output's type, the smallest that each row may be.
            high: the largest.

        Returns:
            Interval of `(tokens, hidden)`, ends being values of the output's type; NaN where only NaN is legal.

        Rules: ROUTED-2, ROUTED-3.
        """
        negative = (self.factors < 0).unsqueeze(-1)
        ends = [self._terms(torch.where(negative, other, rows)) for rows, other in ((low, high), (high, low))]
        slots = int(self.there.sum(-1).max()) if self.there.numel() else 0
        ways: Iterable[tuple[int, ...]] = [tuple(range(slots))]
        if not self.way.fixed:
            if math.factorial(slots) * self.start.numel() > MOST_ORDERED:
                return self._bounded(ends[0], ends[1][0])
            ways = itertools.permutations(range(slots))
        fusings = (False, True) if self.way.weight == "sum" else (False,)
        found: Interval | None = None
        for order, fused in itertools.product(ways, fusings):
            least, most = (self._added(terms, order, fused=fused).double() for terms in ends)
            if found is not None:
                least, most = torch.minimum(least, found.low), torch.maximum(most, found.high)
            found = Interval(least, most)
        assert found is not None  # noqa: S101 - there is an order
        return found

    def _terms(self, rows: Tensor) -> _Terms:
        """Return rows, factors and which of them count, in a fixed order."""
        order = self.slot_order()
        index = order.unsqueeze(-1).expand(rows.shape)
        return rows.gather(1, index), self.factors.gather(1, order), self.there.gather(1, order)

    def _added(self, terms: _Terms, order: Iterable[int], *, fused: bool) -> Tensor:
        rows, factors, there = terms
        total = self.start.float() if self.way.onto else torch.zeros_like(self.start, dtype=torch.float32)
        for slot in order:
            row, factor = rows[:, slot], factors[:, slot, None]
            if fused:
                # The product is exact in float64, and its sum is rounded there 2^29 times finer than in float32.
                added = (total.double() + factor.double() * row.double()).float()
            else:
                added = total + factor * row.float()
            if self.way.stepwise:
                added = added.to(self.start.dtype).float()
            total = torch.where(there[:, slot, None], added, total)
        return (total * self.way.times).to(self.start.dtype)

    def _bounded(self, ends: _Terms, high: Tensor) -> Interval:
        """Return a range that the sums in every order lie in: each step errs by half a unit of the largest partial sum."""
        low, factors, there = ends
        counted = there.unsqueeze(-1)
        kind = self.start.dtype if self.way.stepwise else torch.float32
        factor = factors.double().unsqueeze(-1)
        first = self.start.double() if self.way.onto else torch.zeros_like(self.start, dtype=torch.float64)
        products = [torch.where(counted, rows.double() * factor, 0) for rows in (low, high)]
        steps = low.shape[1] + 1
        magnitude = torch.maximum(products[0].abs(), products[1].abs()).sum(1) + first.abs()
        unit = _UNIT[kind] + _UNIT[torch.float32]
        error = magnitude * (2 * steps * unit * (1 + unit) ** steps) + 2 * steps * _LEAST[kind]
        error = error.masked_fill(~error.isfinite(), 0)  # infinity and NaN are the same in every order
        low_sum, high_sum = (first + each.sum(1) for each in products)
        kept, times = self.start.dtype, self.way.times
        if times != 1:  # one more rounding of float32
            error = error + magnitude.masked_fill(~magnitude.isfinite(), 0) * (2 * _UNIT[torch.float32])
        return Interval(
            ((low_sum - error) * times).to(kept).double(), ((high_sum + error) * times).to(kept).double()
        )


_Terms = tuple[Tensor, Tensor, Tensor]

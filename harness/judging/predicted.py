"""What a candidate's accumulators hold, bit for bit, where its summation is known: asked where the bound leaves several values.

A right kernel may add in another order in some tiles or at some k (split k for few rows, stream k for the last tiles). So a
tile whose values are legal by the bound but not those of the known order is right as well if one other order explains
every element of it that the bound leaves open.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.bounds import LegalOutput, Predict, epilogue
from reference.e4m3 import decode_e4m3
from reference.matrix_units import Operand, Summation

TILE = 64
_TILES = (64, 128, 256)
_FEW = 8


@dataclass(frozen=True)
class Prediction:
    """A known summation and the operands that it is asked for.

    Attributes:
        summation: how the candidate's GEMM adds.
        a: `(experts, capacity, k)` float32, decoded.
        a_scale: `(experts, capacity, k / 16)` uint8, its block scales.
        b: `(experts, n, k)` float32, decoded.
        b_scale: `(experts, n, k / 16)` uint8.
    """

    summation: Summation
    a: Tensor
    a_scale: Tensor
    b: Tensor
    b_scale: Tensor

    def operands(self, expert: int, rows: int) -> tuple[Operand, Operand]:
        """Return both operands of an expert, the first one's valid rows."""
        return (
            self.summation.operand(self.a[expert, :rows], decode_e4m3(self.a_scale[expert, :rows])),
            self.summation.operand(self.b[expert], decode_e4m3(self.b_scale[expert])),
        )

    def of_expert(self, expert: int, rows: int) -> Predict:
        """Return what legal_gemm asks for the sums of an expert's valid rows."""
        return lambda where: self.summation.chosen(*self.operands(expert, rows), where)


def orders_of(plain: Summation, k: int) -> list[Summation]:
    """Return a unit's orders along a k that a kernel may have, all with float32 partial sums, the simplest first."""
    split = [
        replace(plain, parts=parts, tile=tile)
        for tile in _TILES
        for parts in range(2, 9)
        if (parts - 1) * tile < k
    ]
    long = [replace(plain, length=length) for length in (256, 512, 1024, 2048) if length < k]
    promoted = [replace(plain, promote=every) for every in (64, 128, 256, 512) if every < k]
    return [
        plain,
        *split,
        *(replace(order, pairwise=True) for order in split if order.parts > 2),
        *long,
        *promoted,
    ]


def other_orders(k: int, known: Summation) -> list[Summation]:
    """Return the orders along k that a kernel may change to: the same unit, other cuts."""
    by_cuts = {order.order(k): order for order in reversed(orders_of(Summation(known.name), k))}
    by_cuts.pop(known.order(k), None)
    return list(reversed(by_cuts.values()))


def _gives(
    order: Summation, sides: tuple[Operand, Operand], where: Tensor, out: Tensor, alpha: Tensor | None
) -> bool:
    """Return whether an order gives the stored values of some elements."""
    return torch.equal(epilogue(order.chosen(*sides, where).double(), alpha, out.dtype), out[where])


def explained(
    bad: Tensor, out: Tensor, legal: LegalOutput, prediction: Prediction, expert: int, alpha: Tensor | None
) -> Counter[str]:
    """Clear what one other order explains, tile by tile, from the elements of an expert that are not as predicted.

    Args:
        bad: `(rows, n)` bool, not as predicted; changed in place.
        out: `(rows, n)`, the candidate's output.
        legal: by the bound alone.
        prediction: of the known order.
        expert: which one.
        alpha: `()` float32 or None.

    Returns:
        Elements that the bound leaves open in the tiles of each other order.
    """
    found: Counter[str] = Counter()
    outside = ~legal.accepts(out)
    undecided = (legal.low != legal.high) & legal.exact.isfinite()
    a, b = prediction.operands(expert, len(out))
    orders = other_orders(a.k, prediction.summation)
    for row, column in {(r // TILE, c // TILE) for r, c in bad.nonzero().tolist()}:
        tile = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
        where = undecided[tile]
        if bool(outside[tile].any()) or bool((bad[tile] & ~where).any()):
            continue
        sides = a.at(tile[0]), b.at(tile[1])
        few = torch.zeros_like(where)
        few[tuple(bad[tile].nonzero()[:_FEW].T)] = (
            True  # an order that does not explain these need not be asked further
        )
        # Where one tile is unexplained the problem fails, and the others are only asked for orders that were found.
        for order in list(orders):
            if all(_gives(order, sides, asked, out[tile], alpha) for asked in (few, where)):
                bad[tile] = False
                found[str(order)] += int(where.sum())
                break
        else:
            orders = [order for order in orders if str(order) in found]
    return found

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


def other_orders(k: int, known: Summation) -> list[Summation]:
    """Return the orders along k that a kernel may change to: the same unit, float32 partial sums."""
    plain = Summation(known.name)
    orders = [plain]
    for tile in _TILES:
        orders += [replace(plain, parts=parts, tile=tile) for parts in range(2, 9) if parts * tile <= k]
    orders += [replace(order, pairwise=True) for order in orders if order.parts > 2]
    orders += [replace(plain, length=length) for length in (256, 512, 1024, 2048) if length < k]
    orders += [replace(plain, promote=every) for every in (64, 128, 256, 512) if every < k]
    by_cuts = {order.order(k): order for order in reversed(orders)}
    by_cuts.pop(known.order(k), None)
    return list(reversed(by_cuts.values()))


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
        for order in orders:
            sums = order.chosen(a.at(tile[0]), b.at(tile[1]), where)
            if torch.equal(epilogue(sums.double(), alpha, out.dtype), out[tile][where]):
                bad[tile] = False
                found[str(order)] += int(where.sum())
                break
    return found

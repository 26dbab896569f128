"""What a candidate leaves in memory that it need not write: learned from its padding rows, so that models do the same.

Faults about counts and layouts move padding into valid rows; what is found there is the candidate's own habit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.diagnosis.cases.observation import MASKED_GEMM, Observed
from harness.diagnosis.cases.views import same

UNWRITTEN, UNWRITTEN_CODE = 0xFF, 0xF  # a scale byte that no quantizer stores, and the code beside it
TILE = 128
_ROUNDING = 0.02  # of a row's largest element
_OFTEN = 0.25  # of the padding rows: a fault about counts may have written some of them


@dataclass(frozen=True)
class Habits:
    """What lies in rows and scales that a right candidate need not write.

    Attributes:
        fill: byte of a quantizer's padding rows and scale padding.
        tail: of the rows of a GEMM's last tile past the valid ones: "product", "zeros", "nan" or "before".
    """

    fill: int = UNWRITTEN
    tail: str = "product"


def learned_habits(
    call: Observed, valid: Tensor, seen: Tensor, product: Tensor | None = None
) -> tuple[Habits, bool]:
    """Return a candidate's habits as one call shows them, and whether its padding holds anything at all.

    Args:
        call: the call.
        valid: `(groups, rows)` bool.
        seen: the output's elements.
        product: of a GEMM, what a model that multiplies whole tiles stores: where padding rows hold it, a fault about
            counts may have put it there, and the other padding rows show the habit.
    """
    padding = ~valid
    if not bool(padding.any()):
        return Habits(), False
    if call.has_codes:
        return _quantizer_habits(seen[padding])
    return (_gemm_habits(call, valid, seen, product) if call.stage == MASKED_GEMM else Habits()), False


def _quantizer_habits(rows: Tensor) -> tuple[Habits, bool]:
    """Return the byte that fills padding rows `(n, blocks, 17)`, and whether too few of them are filled with one byte."""
    first = rows[:, :1]
    one_code = (first[..., :-1] == first[..., :1]).flatten(1).all(-1)
    constant = (rows == first).flatten(1).all(-1) & one_code
    if float(constant.double().mean()) < _OFTEN:
        return Habits(), True
    return Habits(fill=int(rows[constant].flatten(1)[:, -1].mode().values)), False


def _gemm_habits(call: Observed, valid: Tensor, seen: Tensor, product: Tensor | None) -> Habits:
    padding = ~valid
    counts = valid.sum(-1, keepdim=True)
    row = torch.arange(valid.shape[1])
    tail = padding & (row < -(-counts // TILE) * TILE)
    if product is not None:
        tail &= ~_close(seen, product)
        if not bool(tail.any()):
            # All of it was computed: rows that should have been computed may hold the habit instead.
            tail = valid & ~_close(seen, product)
    rows = seen[tail].flatten(1)
    if not len(rows):
        return Habits()
    before = call.arguments["out"].permute(2, 0, 1)[tail]
    looks = {"zeros": rows == 0, "before": same(rows, before), "nan": rows.isnan()}
    shares = {tail: float(all_of.all(-1).double().mean()) for tail, all_of in looks.items()}
    likely = max(shares, key=lambda tail: shares[tail])
    return Habits(tail=likely if shares[likely] >= _OFTEN else "product")


def _close(seen: Tensor, product: Tensor) -> Tensor:
    """Return which rows are a product but for rounding, `(groups, rows)` bool."""
    o, p = seen.float().flatten(2), product.float().flatten(2)
    size = p.abs().nan_to_num(0.0).amax(-1, keepdim=True)
    return (((o - p).abs() <= _ROUNDING * size) | same(o, p)).all(-1)


def tail_value(tail: str) -> float | None:
    """Return what a GEMM stores in its tail rows, None for their product."""
    return {"zeros": 0.0, "nan": math.nan}.get(tail)

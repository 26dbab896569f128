"""float32 FMA by a device's own additions, where they have the same bits: no product rounds, no sum leaves the normal range.

The products of NVFP4 and of every format of a few bits are such. A step of k costs one operation of torch and not a dozen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.matrix_units.step import Operand
from reference.matrix_units.unit import FMA, MatrixUnit

_BITS = 12  # significant ones of a value: a product then has 24
_MORE = (1 << (53 - _BITS)) - 1  # bits of a float64 below them
_LEAST = 2.0 ** (
    2 * (_BITS - 1) - 126
)  # of a product: its last bit, and so that of each sum, is a normal number
_MOST = 2.0**127  # of a sum
_ELEMENTS = 1 << 16  # of sums that are held at a time, so that they stay in a cache


def suffice(unit: MatrixUnit, a: Operand, b: Operand) -> bool:
    """Return whether float32 additions of float32 products give what a unit gives, bit for bit.

    Args:
        unit: of each instruction.
        a: `(*, k)`.
        b: `(*, k)`.
    """
    if unit != FMA:
        return False
    sides = [side.values() for side in (a, b)]
    if any(bool((values.view(torch.int64) & _MORE).any()) for values in sides):
        return False
    sizes = [values.abs() for values in sides]
    least = [float(size.masked_fill(size == 0, torch.inf).amin()) if size.numel() else 1.0 for size in sizes]
    most = [float(size.amax()) if size.numel() else 0.0 for size in sizes]
    return least[0] * least[1] >= _LEAST and most[0] * most[1] * a.k < _MOST  # not so of NaN


def products(a: Operand, b: Operand) -> Tensor:
    """Return the products of rows with rows, `(k, rows)` float32."""
    return (a.values() * b.values()).float().T.contiguous()


def part(a: Operand, b: Operand, promote: int = 0) -> Tensor:
    """Return a @ b.T, `(m, n)` float32, added along k in order; see `KOrder` for the promotion."""
    left, right = (side.values().float() for side in (a, b))
    columns = right.T.contiguous().unbind()
    stripes = torch.split(left, max(1, _ELEMENTS // max(1, len(right))))
    return torch.cat([_rows(rows, columns, promote) for rows in stripes])


def _rows(rows: Tensor, columns: tuple[Tensor, ...], promote: int) -> Tensor:
    total = rows.new_zeros(len(rows), len(columns[0]))
    register = None
    for at, (left, right) in enumerate(
        zip(rows.T.unsqueeze(-1).contiguous().unbind(), columns, strict=True), 1
    ):
        total.addcmul_(left, right)  # fused or not: the product is exact
        if promote and at % promote == 0:
            register = total if register is None else register + total
            total = torch.zeros_like(total)
    if register is None:
        return total
    return register if len(columns) % promote == 0 else register + total

"""The sum over k of a kernel: instructions of a matrix unit in order, splits of k, promotions to float32 registers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.matrix_units.step import Operands, add_products
from reference.matrix_units.unit import MatrixUnit

_ELEMENTS = 1 << 22  # of a block of terms that are held at a time


@dataclass(frozen=True)
class KOrder:
    """How a kernel adds along k; by default one pass: every instruction into one accumulator, in order.

    Attributes:
        cuts: where along k, ascending, a new part begins: parts are summed on their own and added in order (split k,
            stream k). See `even_cuts`.
        promote: the accumulator is added to a float32 register, to nearest, and begins again at zero after so many
            elements of k (Hopper's FP8 kernels: 128); 0: never.
        partial: type that the sum of a part is rounded to, to nearest, before parts are added: "float32", "bfloat16",
            "float16".
        pairwise: parts are added as a tree, neighbours first; otherwise one after the other.
    """

    cuts: tuple[int, ...] = ()
    promote: int = 0
    partial: str = "float32"
    pairwise: bool = False


def even_cuts(k: int, parts: int, tile: int = 64) -> tuple[int, ...]:
    """Return the cuts of k into parts of whole tiles whose sizes differ by one tile at most, the larger ones first."""
    tiles = -(-k // tile)
    size, more = divmod(tiles, parts)
    ends = [tile * (size * part + min(part, more)) for part in range(1, parts)]
    return tuple(end for end in ends if 0 < end < k)


def dot(unit: MatrixUnit, a: Operands, b: Operands, order: KOrder = KOrder()) -> Tensor:  # noqa: B008 - frozen
    """Return the dot products of rows with rows, bit for bit as the unit adds them.

    Args:
        unit: of each instruction.
        a: `(*, k)`.
        b: `(*, k)`; leading axes broadcast.
        order: along k.

    Returns:
        `(*)` float32, or float16 where that is the unit's result.
    """
    k = a.values.shape[-1]
    shape = torch.broadcast_shapes(a.values.shape[:-1], b.values.shape[:-1])
    held = torch.float16 if unit.result == "float16" else torch.float32
    ends = (*order.cuts, k)
    parts = []
    for start, end in zip((0, *order.cuts), ends, strict=True):
        register = None
        total = torch.zeros(shape, dtype=held, device=a.values.device)
        for at in range(start, end, unit.k):
            part = slice(at, min(at + unit.k, end))
            total = add_products(unit, a[part], b[part], total)
            if order.promote and (part.stop - start) % order.promote == 0:
                register = total if register is None else register + total
                total = torch.zeros_like(total)
        whole = order.promote and (end - start) % order.promote == 0
        if register is not None:
            total = register if whole else register + total
        parts.append(total.to(getattr(torch, order.partial)).to(held))
    return _joined(parts, pairwise=order.pairwise)


def _joined(parts: list[Tensor], *, pairwise: bool) -> Tensor:
    while len(parts) > 1:
        count = len(parts) // 2 if pairwise else 1
        pairs = [parts[2 * i] + parts[2 * i + 1] for i in range(count)]
        parts = pairs + parts[2 * count :]
    return parts[0]


def matmul(unit: MatrixUnit, a: Operands, b: Operands, order: KOrder = KOrder()) -> Tensor:  # noqa: B008 - frozen
    """Return a @ b.T as `dot` adds it, a block of rows at a time.

    Args:
        unit: of each instruction.
        a: `(m, k)`.
        b: `(n, k)`.
        order: along k.

    Returns:
        `(m, n)` float32, or float16 where that is the unit's result.
    """
    rows, columns = a.values.shape[0], b.values.shape[0]
    step = max(1, _ELEMENTS // max(1, columns * unit.k))
    right = b.unsqueeze(0)
    blocks = [
        dot(unit, a.rows(slice(at, at + step)).unsqueeze(1), right, order) for at in range(0, rows, step)
    ]
    return torch.cat(blocks) if blocks else torch.zeros(0, columns, device=a.values.device)

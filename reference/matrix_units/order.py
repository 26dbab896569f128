"""The sum over k of a kernel: instructions of a matrix unit in order, splits of k, promotions to float32 registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.matrix_units import additions, fused
from reference.matrix_units.step import Operand, add_exactly, add_products, add_terms, all_pairs
from reference.matrix_units.unit import MatrixUnit

_ELEMENTS = 1 << 22  # of a block of terms that are held at a time
_PAIRS = 1 << 21  # products of pairs of rows that are held at a time
_SPARSE = 1 / 16  # share of a product's elements up to which they are added one by one
_Add = Callable[[MatrixUnit, Operand, Operand, Tensor], Tensor]


@dataclass(frozen=True)
class KOrder:
    """How a kernel adds along k; by default one pass: every instruction into one accumulator, in order.

    Attributes:
        cuts: where along k, ascending, a new part begins: parts are summed on their own and added in order (split k,
            stream k). See `even_cuts`.
        promote: the accumulator is added to a float32 register, to nearest, and begins again at zero after so many
            elements of k (Hopper's FP8 kernels: 128); 0: never.
        partial: type that the sum of a part is rounded to, to nearest, before several are added: "float32", "bfloat16",
            "float16".
        pairwise: parts are added as a tree, neighbours first; otherwise one after the other.
        reverse: the last part comes first (stream k: the block that has the end of k stores, the others add to it).
        lanes: accumulators of a part that take `width` elements of k in turn and are added in order at its end (warps that share
            a block of k).
        width: elements of k of a turn.
    """

    cuts: tuple[int, ...] = ()
    promote: int = 0
    partial: str = "float32"
    pairwise: bool = False
    reverse: bool = False
    lanes: int = 1
    width: int = 64

    def parts(self, k: int) -> list[tuple[int, int]]:
        """Return where along k each part begins and ends."""
        return list(zip((0, *self.cuts), (*self.cuts, k), strict=True))


ONE_PASS = KOrder()


def even_cuts(k: int, parts: int, tile: int = 64) -> tuple[int, ...]:
    """Return the cuts of k into parts of whole tiles whose sizes differ by one tile at most, the larger ones first."""
    tiles = -(-k // tile)
    size, more = divmod(tiles, parts)
    ends = [tile * (size * part + min(part, more)) for part in range(1, parts)]
    return tuple(end for end in ends if 0 < end < k)


def dot(unit: MatrixUnit, a: Operand, b: Operand, order: KOrder = ONE_PASS) -> Tensor:
    """Return the dot products of rows with rows, bit for bit as the unit adds them.

    Args:
        unit: of each instruction.
        a: `(*, k)`.
        b: `(*, k)`, the same leading axes.
        order: along k.

    Returns:
        `(*)` float32, or float16 where that is the unit's result.
    """
    a, b = a.aligned_for(unit), b.aligned_for(unit)
    return _summed(unit, a, b, order, add_products, a.elements.values.shape[:-1])


def _summed(
    unit: MatrixUnit, a: Operand, b: Operand, order: KOrder, add: _Add, shape: tuple[int, ...]
) -> Tensor:
    """Return the sums over k of accumulators of a shape."""
    held = torch.float16 if unit.result == "float16" else torch.float32

    def of_lane(a: Operand, b: Operand) -> Tensor:
        register = None
        total = torch.zeros(shape, dtype=held, device=a.elements.values.device)
        for at in range(0, a.k, unit.k):
            stop = min(at + unit.k, a.k)
            total = add(unit, a.along_k(at, stop), b.along_k(at, stop), total)
            if order.promote and stop % order.promote == 0:
                register = total if register is None else register + total
                total = torch.zeros_like(total)
        whole = order.promote and a.k % order.promote == 0
        if register is not None:
            total = register if whole else register + total
        return total

    return _joined(order, a, b, of_lane)


def _joined(order: KOrder, a: Operand, b: Operand, of_lane: Callable[[Operand, Operand], Tensor]) -> Tensor:
    """Return the sum of the parts of k, each rounded before."""
    parts = []
    for start, end in order.parts(a.k):
        left, right = a.along_k(start, end), b.along_k(start, end)
        if order.lanes == 1:
            total = of_lane(left, right)
        else:
            lanes = range(min(order.lanes, -(-(end - start) // order.width)))
            first, *others = (
                of_lane(
                    left.turns(lane, order.lanes, order.width), right.turns(lane, order.lanes, order.width)
                )
                for lane in lanes
            )
            total = sum(others, first)
        parts.append(total.to(getattr(torch, order.partial)).to(total.dtype) if order.cuts else total)
    if order.reverse:
        parts.reverse()
    while len(parts) > 1:
        count = len(parts) // 2 if order.pairwise else 1
        pairs = [parts[2 * i] + parts[2 * i + 1] for i in range(count)]
        parts = pairs + parts[2 * count :]
    return parts[0]


def matmul(
    unit: MatrixUnit, a: Operand, b: Operand, order: KOrder = ONE_PASS, *, in_torch: bool = False
) -> Tensor:
    """Return a @ b.T as `dot` adds it.

    On a CUDA device by a Triton kernel where there is one (`fused.py`), float32 FMA by plain additions where they suffice
    (`additions.py`).

    Args:
        unit: of each instruction.
        a: `(m, k)`.
        b: `(n, k)`.
        order: along k.
        in_torch: by neither, but as defined, a block of rows at a time. The bits are the same.

    Returns:
        `(m, n)` float32, or float16 where that is the unit's result.
    """
    rows, columns = len(a.elements.values), len(b.elements.values)
    if not in_torch and fused.has_kernel(unit, a, b, [start for start, _ in order.parts(a.k)]):
        return _joined(order, a, b, lambda left, right: fused.part(unit, left, right, order.promote))
    a, b = a.aligned_for(unit), b.aligned_for(unit)
    if not in_torch and additions.suffice(unit, a, b):
        return _joined(order, a, b, lambda left, right: additions.part(left, right, order.promote))
    terms = 1 if unit.fraction is None else unit.k // (unit.group or 1)
    step = max(1, _ELEMENTS // max(1, columns * terms))
    blocks = [
        _summed(unit, part, b, order, _add_all_pairs, (len(part.elements.values), columns))
        for part in (a.at(slice(at, at + step)) for at in range(0, rows, step))
    ]
    return torch.cat(blocks) if blocks else torch.zeros(0, columns, device=a.elements.values.device)


def _add_all_pairs(unit: MatrixUnit, a: Operand, b: Operand, total: Tensor) -> Tensor:
    if unit.adds_exactly:
        return add_exactly(unit, (a.values() @ b.values().T).unsqueeze(-1), total)
    return add_terms(unit, all_pairs(unit, a, b), total, padded=a.k < unit.k)


def chosen(unit: MatrixUnit, a: Operand, b: Operand, where: Tensor, order: KOrder = ONE_PASS) -> Tensor:
    """Return some elements of a @ b.T.

    Args:
        unit: of each instruction.
        a: `(m, k)`.
        b: `(n, k)`.
        where: `(m, n)` bool.
        order: along k.

    Returns:
        float32, those where it is set, in the order of `where.nonzero()`.
    """
    # On a GPU a kernel adds all of them sooner than torch adds a few.
    if where.is_cuda or unit.fraction is None or float(where.float().mean()) > _SPARSE:
        rows = where.any(1)
        return matmul(unit, a.at(rows), b, order)[where[rows]]
    row, column = where.nonzero().unbind(1)
    step = max(1, _PAIRS // a.k)
    parts = [
        dot(unit, a.at(row[at : at + step]), b.at(column[at : at + step]), order)
        for at in range(0, len(row), step)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, device=where.device)

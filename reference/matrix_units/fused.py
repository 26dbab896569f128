"""A matrix product of a unit by one Triton kernel for each part of k: the bits of the torch form, sooner.

Needs triton and a CUDA device; on a CPU only Triton's interpreter (TRITON_INTERPRET=1), for tests. Here is what the
host does: which products a kernel can do, and operands in tiles, in the narrowest type that holds them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.fast import launch
from reference.matrix_units.step import FAR, Operand
from reference.matrix_units.unit import MatrixUnit

_FRACTIONS = {"float32": 23, "13 bits": 13}  # of the results that the kernels round to
_NEVER = -10_000  # exponent of a zero: never the largest, and twice it is still an int16
# The sizes of one program that were fastest on an H200; fewer registers than the compiler would take let more run at once.
_OF_GROUPS: dict[str, int] = {"tile_rows": 8, "tile_columns": 512, "num_warps": 4, "maxnreg": 168}
_OF_PRODUCTS: dict[str, int] = {"tile_rows": 4, "tile_columns": 512, "num_warps": 4, "unroll": 8}


def has_kernel(unit: MatrixUnit, a: Operand, b: Operand, starts: Sequence[int]) -> bool:
    """Return whether `part` can add parts of these operands.

    Args:
        unit: its result is float32 in some form, and its terms are cut.
        a: `(m, k)`, not empty. A unit that adds groups needs elements of E2M1, and block scales.
        b: `(n, k)`, likewise.
        starts: where along k parts begin: whole blocks, where there are scales.
    """
    if not (
        launch.has_kernels(a.elements.values) and a.elements.values.numel() and b.elements.values.numel()
    ):
        return False
    if unit.fraction is None or unit.result not in _FRACTIONS or unit.zero > -126:
        return False
    if unit.k % _OF_PRODUCTS["unroll"] or unit.group not in (0, 16):
        return False
    if a.scales is None or b.scales is None:
        return not unit.group
    for operand in (a, b):
        block = operand.k // operand.scales.values.shape[-1]  # type: ignore[union-attr] # seen above
        whole = all(start % block == 0 for start in starts) and (unit.k % block == 0 or block % unit.k == 0)
        if not whole or (unit.group and (block % unit.group or not _is_e2m1(operand.elements.values))):
            return False
    return True


def _is_e2m1(values: Tensor) -> bool:
    """Return whether float32 holds every sum of a group of products exactly: halves up to 6."""
    return bool(((values.abs() <= 6) & (2 * values == torch.trunc(2 * values))).all())


def part(unit: MatrixUnit, a: Operand, b: Operand, promote: int) -> Tensor:
    """Return the sums over the k of the operands, all of which `has_kernel`.

    Args:
        unit: of each instruction.
        a: `(m, k)`.
        b: `(n, k)`.
        promote: of the order.

    Returns:
        `(m, n)` float32.
    """
    from reference.matrix_units.fused_kernels import sum_groups, sum_products

    if unit.group:
        kernel, of, sizes = sum_groups, _of_groups, {**_OF_GROUPS, "group": unit.group}
    else:
        kernel, of, sizes = sum_products, _of_products, _OF_PRODUCTS
    m, n = len(a.elements.values), len(b.elements.values)
    rows, columns = sizes["tile_rows"], sizes["tile_columns"]
    down, across = -(-m // rows), -(-n // columns)
    scaled = a.scales is not None and b.scales is not None
    out = torch.empty(down * rows, across * columns, dtype=torch.float32, device=a.elements.values.device)
    kernel[(down * across,)](
        *of(unit, a, rows, scaled=scaled), *of(unit, b, columns, scaled=scaled), out, across, a.k,
        k=unit.k, fraction=unit.fraction, kept=_FRACTIONS[unit.result], zero=unit.zero, most=FAR // 4,
        promote=promote, **sizes,
    )  # fmt: skip
    return out[:m, :n].contiguous()


def _of_products(unit: MatrixUnit, operand: Operand, tile: int, *, scaled: bool) -> tuple[Tensor, Tensor]:
    """Return elements times their block scales, and exponents, `(tiles, instructions * k, tile)`."""
    numbers = operand.elements
    if scaled and operand.scales is not None:
        numbers *= operand.scales.spread(operand.k)
    length = -(-operand.k // unit.k) * unit.k
    exponents = torch.where(numbers.values == 0, _NEVER, numbers.exponents)
    return (
        _in_tiles(_narrowed(numbers.values), length, tile),
        _in_tiles(exponents.short(), length, tile, _NEVER),
    )


def _of_groups(unit: MatrixUnit, operand: Operand, tile: int, *, scaled: bool) -> tuple[Tensor, ...]:
    """Return elements, `(tiles, instructions * k, tile)`; of each group scale, its exponent, bits of what is not zero."""
    if operand.scales is None or not scaled:
        raise ValueError("a unit that adds groups exactly needs block scales of both operands, got none")
    values, groups = operand.elements.values, operand.k // unit.group
    scales = operand.scales.spread(groups)
    exponents = torch.where(scales.values == 0, _NEVER, scales.exponents)
    bits = 1 << torch.arange(unit.group, dtype=torch.int32, device=values.device)
    nonzero = torch.where(values.view(-1, groups, unit.group) != 0, bits, 0).sum(-1, dtype=torch.int32)
    length = -(-operand.k // unit.k) * unit.k
    return (
        _in_tiles(values.half(), length, tile),
        *(
            _in_tiles(x, length // unit.group, tile)
            for x in (scales.values.float(), exponents.short(), nonzero)
        ),
    )


def _narrowed(values: Tensor) -> Tensor:
    """Return float64 values in the narrowest type that holds them all."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        narrow = values.to(dtype)
        if bool(((narrow == values) | values.isnan()).all()):
            return narrow
    return values


def _in_tiles(x: Tensor, length: int, tile: int, fill: int = 0) -> Tensor:
    """Return `(rows, k)` as `(tiles, length, tile)`, filled up."""
    rows, k = x.shape
    tiles = -(-rows // tile)
    out = torch.full((tiles * tile, length), fill, dtype=x.dtype, device=x.device)
    out[:rows, :k] = x
    return out.view(tiles, tile, length).transpose(1, 2).contiguous()

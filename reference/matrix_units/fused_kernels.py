"""The Triton kernels of `fused.py`: a part of k, every instruction of one accumulator in registers.

They are `step.py` in float64 registers, statement by statement; every number but the accumulator is exact there, so the
bits are the same. Elements lie k-major within tiles of rows or columns: neighbouring threads read neighbouring columns,
and every address is one of a tile and a constant. The host fills tiles and instructions up: no load has a mask. An
element or a scale that is zero has an exponent so low that the accumulator's is larger.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, unused-ignore"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _trunc(x):
    # toward zero: the floor of the magnitude, and the bit of the sign, which costs less than a choice of two
    sign = x.to(tl.int64, bitcast=True) & (-1 << 63)
    return (tl.floor(tl.abs(x)).to(tl.int64, bitcast=True) | sign).to(tl.float64, bitcast=True)


@triton.jit
def _exponent(x, least: tl.constexpr, most: tl.constexpr):
    """Return floor(log2 |x|) of float64, at least and at most two bounds."""
    bits = (x.to(tl.int64, bitcast=True) >> 52).to(tl.int32)
    return tl.minimum(tl.maximum((bits & 0x7FF) - 1023, least), most)


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _aligned_to(total, zero: tl.constexpr, most: tl.constexpr):
    """Return the exponent that an accumulator is aligned by."""
    return tl.where(total == 0, zero, _exponent(total.to(tl.float64), -126, most))


@triton.jit
def _rounded(x, kept: tl.constexpr, most: tl.constexpr):
    """Return float64 as float32, cut toward zero after so many fractional bits."""
    exponent = _exponent(x, -126, most)
    out = (_trunc(x * _power_of_two(kept - exponent)) * _power_of_two(exponent - kept)).to(tl.float32)
    nan = tl.full(out.shape, 0x7FFFFFFF, tl.int32).to(tl.float32, bitcast=True)
    return tl.where(out == out, out + 0.0, nan)  # noqa: PLR0124 - false for NaN


@triton.jit
def sum_products(
    a, a_exponents, b, b_exponents, out, across, length,
    k: tl.constexpr, fraction: tl.constexpr, kept: tl.constexpr, zero: tl.constexpr, most: tl.constexpr,
    promote: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr, unroll: tl.constexpr,
):  # fmt: skip
    """Write the sums of a unit that aligns every product by itself.

    Args:
        a: `(tiles, whole instructions * k, tile_rows)` bfloat16, float16, float32 or float64.
        a_exponents: int16, as `a`; of elements that are zero so low that they never count.
        b: `(tiles, whole instructions * k, tile_columns)`.
        b_exponents: int16, as `b`.
        out: `(rows, columns)` float32, whole tiles.
        across: tiles of columns.
        length: elements along k.
        k: of an instruction.
        fraction: of the unit.
        kept: fractional bits of the result.
        zero: of the unit.
        most: largest exponent.
        promote: of the order.
        tile_rows: of one program.
        tile_columns: of one program.
        unroll: products in a piece of straight code.
    """
    row, column = tl.program_id(0) // across, tl.program_id(0) % across
    rows, columns = tl.arange(0, tile_rows)[:, None], tl.arange(0, tile_columns)[None, :]
    whole = tl.cdiv(length, k).to(tl.int64) * k
    a += row * whole * tile_rows
    a_exponents += row * whole * tile_rows
    b += column * whole * tile_columns
    b_exponents += column * whole * tile_columns
    total = tl.zeros((tile_rows, tile_columns), tl.float32)
    register = tl.zeros((tile_rows, tile_columns), tl.float32)
    for start in range(0, length, k):
        at = tl.cast(start, tl.int64)
        largest = _aligned_to(total, zero, most)
        for i in tl.range(0, k, unroll):
            left = a_exponents + (at + i) * tile_rows + rows
            right = b_exponents + (at + i) * tile_columns + columns
            for j in tl.static_range(unroll):
                of_a = tl.load(left + j * tile_rows).to(tl.int32)
                of_b = tl.load(right + j * tile_columns).to(tl.int32)
                largest = tl.maximum(largest, of_a + of_b)
        to_units = _power_of_two(fraction - largest)
        cut = _trunc(total.to(tl.float64) * to_units)
        for i in tl.range(0, k, unroll):
            left = a + (at + i) * tile_rows + rows
            right = b + (at + i) * tile_columns + columns
            for j in tl.static_range(unroll):
                of_a = tl.load(left + j * tile_rows).to(tl.float64)
                of_b = tl.load(right + j * tile_columns).to(tl.float64)
                cut += _trunc(of_a * of_b * to_units)
        total = _rounded(cut * _power_of_two(largest - fraction), kept, most)
        if promote:  # noqa: SIM102 - known when compiled, the next is not
            if tl.minimum(start + k, length) % promote == 0:
                register += total
                total = tl.zeros_like(total)
    if promote:
        total = register + total
    at = (row.to(tl.int64) * tile_rows + rows) * across * tile_columns + column * tile_columns + columns
    tl.store(out + at, total)


@triton.jit
def sum_groups(
    a, a_scales, a_exponents, a_nonzero, b, b_scales, b_exponents, b_nonzero, out, across, length,
    k: tl.constexpr, group: tl.constexpr, fraction: tl.constexpr, kept: tl.constexpr, zero: tl.constexpr,
    most: tl.constexpr, promote: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    """Write the sums of a unit that adds groups of products exactly.

    Args:
        a: `(tiles, whole instructions * k, tile_rows)` float16, values of E2M1: it holds the sum of eight
            products exactly, float32 that of a group.
        a_scales: `(tiles, groups, tile_rows)` float32.
        a_exponents: `(tiles, groups, tile_rows)` int16, of the scales.
        a_nonzero: `(tiles, groups, tile_rows)` int32, a bit for each element of the group that is not zero.
        b: `(tiles, whole instructions * k, tile_columns)`, and so on.
        b_scales: as `a_scales`.
        b_exponents: as `a_exponents`.
        b_nonzero: as `a_nonzero`.
        out: `(rows, columns)` float32, whole tiles.
        across: tiles of columns.
        length: elements along k.
        k: of an instruction.
        group: products that are added exactly.
        fraction: of the unit.
        kept: fractional bits of the result.
        zero: of the unit.
        most: largest exponent.
        promote: of the order.
        tile_rows: of one program.
        tile_columns: of one program.
    """
    row, column = tl.program_id(0) // across, tl.program_id(0) % across
    rows, columns = tl.arange(0, tile_rows)[:, None], tl.arange(0, tile_columns)[None, :]
    whole = tl.cdiv(length, k).to(tl.int64) * k
    a += row * whole * tile_rows
    b += column * whole * tile_columns
    group_rows = row * (whole // group) * tile_rows + rows
    group_columns = column * (whole // group) * tile_columns + columns
    total = tl.zeros((tile_rows, tile_columns), tl.float32)
    register = tl.zeros((tile_rows, tile_columns), tl.float32)
    for start in range(0, length, k):
        at = tl.cast(start, tl.int64)
        of_a, of_b = at // group * tile_rows + group_rows, at // group * tile_columns + group_columns
        largest = _aligned_to(total, zero, most)
        for g in tl.static_range(k // group):
            in_a, in_b = g * tile_rows, g * tile_columns
            live = (tl.load(a_nonzero + of_a + in_a) & tl.load(b_nonzero + of_b + in_b)) != 0
            exponent_a = tl.load(a_exponents + of_a + in_a).to(tl.int32)
            exponent_b = tl.load(b_exponents + of_b + in_b).to(tl.int32)
            largest = tl.where(live, tl.maximum(largest, exponent_a + exponent_b), largest)
        to_units = _power_of_two(fraction - largest)
        cut = _trunc(total.to(tl.float64) * to_units)
        for g in tl.range(0, k // group):
            left = a + (at + g * group) * tile_rows + rows
            right = b + (at + g * group) * tile_columns + columns
            sums = tl.zeros((tile_rows, tile_columns), tl.float32)
            for eighth in tl.static_range(0, group, 8):
                few = tl.zeros((tile_rows, tile_columns), tl.float16)
                for i in tl.static_range(eighth, eighth + 8):
                    few += tl.load(left + i * tile_rows) * tl.load(right + i * tile_columns)
                sums += few.to(tl.float32)
            scale_a = tl.load(a_scales + of_a + g * tile_rows).to(tl.float64)
            scale_b = tl.load(b_scales + of_b + g * tile_columns).to(tl.float64)
            cut += _trunc(sums.to(tl.float64) * (scale_a * scale_b) * to_units)
        total = _rounded(cut * _power_of_two(largest - fraction), kept, most)
        if promote:  # noqa: SIM102 - known when compiled, the next is not
            if tl.minimum(start + k, length) % promote == 0:
                register += total
                total = tl.zeros_like(total)
    if promote:
        total = register + total
    at = (row.to(tl.int64) * tile_rows + rows) * across * tile_columns + column * tile_columns + columns
    tl.store(out + at, total)

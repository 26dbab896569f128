"""Floating-point operations on lane values: bits in, bits out, each rounded as the PTX ISA says.

The two approximations of the hardware are assumptions here: rcp.approx.ftz and ex2.approx.ftz return the correctly rounded
result, with subnormals flushed (docs/cutedsl-cpu.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.interpreter.lanes import LANES, Array, Lanes, lanes

CANONICAL_NAN = 0x7FFF_FFFF


def f32(x: Lanes) -> Any:
    """Return 32 bits as float32."""
    if isinstance(x, int):
        return np.uint32(x).view(np.float32)
    return x.view(np.float32)


def raw(x: Any) -> Lanes:
    """Return float32 as bits."""
    if np.ndim(x) == 0:
        return int(np.float32(x).view(np.uint32))
    return np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)


def pairs(x: Lanes) -> Array:
    """Return 64-bit values as `(32, 2)` float32."""
    return np.ascontiguousarray(lanes(x, np.uint64)).view(np.float32).reshape(LANES, 2)


def raw_pairs(x: Array) -> Lanes:
    """Return `(32, 2)` float32 as 64-bit values."""
    return np.ascontiguousarray(x, dtype=np.float32).view(np.uint64).reshape(LANES)


def flush(x: Any) -> Any:
    """Return float32 with subnormals replaced by zeros of their sign (.ftz)."""
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x).astype(np.float32)


def saturate(x: Any) -> Any:
    """Return float32 clamped to [0, 1], NaN to 0 (.sat)."""
    return np.nan_to_num(np.clip(x, np.float32(0), np.float32(1)), nan=0.0).astype(np.float32)


def fused(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c with one rounding to float32.

    The product of two float32 is exact in float64; the sum is rounded to odd there, which makes the second rounding right.
    """
    product = np.float64(a) * np.float64(b)
    addend = np.float64(c) + np.zeros_like(product)
    total = product + addend
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    odd = np.asarray(total).view(np.int64) & 1
    nudge = np.isfinite(total) & (error != 0) & (odd == 0)
    toward = np.where((error > 0), np.inf, -np.inf)
    return np.where(nudge, np.nextafter(total, toward), total).astype(np.float32)


def minimum(a: Any, b: Any, *, nan: bool = False) -> Any:
    """Return min.f32: a NaN operand is ignored unless `.NaN` is given; -0 is less than +0."""
    plain = np.where((a < b) | ((a == b) & np.signbit(a)), a, b)
    return _ignore_nan(plain, a, b, nan)


def maximum(a: Any, b: Any, *, nan: bool = False) -> Any:
    """Return max.f32: a NaN operand is ignored unless `.NaN` is given."""
    plain = np.where((a > b) | ((a == b) & ~np.signbit(a)), a, b)
    return _ignore_nan(plain, a, b, nan)


def _ignore_nan(plain: Any, a: Any, b: Any, nan: bool) -> Any:
    canonical = np.uint32(CANONICAL_NAN).view(np.float32)
    if nan:
        return np.where(np.isnan(a) | np.isnan(b), canonical, plain).astype(np.float32)
    result = np.where(np.isnan(a), b, np.where(np.isnan(b), a, plain))
    return np.where(np.isnan(a) & np.isnan(b), canonical, result).astype(np.float32)


def reciprocal_approx(x: Any) -> Any:
    """Return rcp.approx.ftz.f32, assumed correctly rounded."""
    return flush(np.float32(1) / flush(x))


def exp2_approx(x: Any, *, ftz: bool = True) -> Any:
    """Return ex2.approx.f32, assumed correctly rounded."""
    result = np.exp2(np.float64(flush(x) if ftz else x)).astype(np.float32)
    return flush(result) if ftz else result


def log2_approx(x: Any, *, ftz: bool = True) -> Any:
    """Return lg2.approx.f32, assumed correctly rounded."""
    result = np.log2(np.float64(flush(x) if ftz else x)).astype(np.float32)
    return flush(result) if ftz else result


def to_bf16(x: Lanes) -> Lanes:
    """Return float32 bits rounded to bfloat16 bits, nearest even, NaN to 0x7FFF."""
    if isinstance(x, int):
        if x & 0x7FFF_FFFF > 0x7F80_0000:
            return 0x7FFF
        return ((x + 0x7FFF + (x >> 16 & 1)) & 0xFFFF_FFFF) >> 16
    rounded = (x + np.uint32(0x7FFF) + (x >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    nan = (x & np.uint32(0x7FFF_FFFF)) > np.uint32(0x7F80_0000)
    return np.where(nan, np.uint32(0x7FFF), rounded) if nan.any() else rounded


def to_f16(x: Lanes) -> Lanes:
    """Return float32 bits rounded to float16 bits, nearest even, NaN to 0x7FFF."""
    value = np.atleast_1d(f32(x))
    half = value.astype(np.float16).view(np.uint16).astype(np.uint32)
    half = np.where(np.isnan(value), np.uint32(0x7FFF), half)
    return int(half[0]) if isinstance(x, int) else half


def from_f16(x: Lanes) -> Lanes:
    """Return float16 bits as float32 bits."""
    if isinstance(x, int):
        return raw(np.uint16(x & 0xFFFF).view(np.float16).astype(np.float32))
    return raw((x & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16).astype(np.float32))


def pair16(high: Lanes, low: Lanes) -> Lanes:
    """Return two 16-bit values as 32 bits."""
    return (high << 16) | low


def _grid(mantissa: int, bias: int, top: int) -> tuple[Array, Array]:
    """Return the non-negative finite values of a small float format, and the midpoints between neighbours."""
    values = []
    for code in range(top + 1):
        exponent, fraction = code >> mantissa, code & ((1 << mantissa) - 1)
        scale = 2.0 ** (max(exponent, 1) - bias)
        values.append(scale * ((exponent > 0) + fraction / (1 << mantissa)))
    grid = np.array(values)
    return grid, (grid[:-1] + grid[1:]) / 2


_E2M1, _E2M1_MIDDLE = _grid(1, 1, 7)
_E4M3, _E4M3_MIDDLE = _grid(3, 7, 0x7E)


def _encode(x: Lanes, middle: Array, top: int, sign: int, nan: int) -> Array:
    """Round to a small float by its definition: nearest, to even at a midpoint."""
    value = np.atleast_1d(f32(x)).astype(np.float64)
    size = np.abs(value)
    below, above = np.searchsorted(middle, size, side="left"), np.searchsorted(middle, size, side="right")
    code = np.where(below % 2 == 0, below, above)  # at a midpoint the two differ by one: take the even code
    code = np.minimum(code, top) | np.where(np.signbit(value), sign, 0)
    return np.where(np.isnan(value), nan, code).astype(np.uint32)


def _table(middle: Array, top: int, sign: int, nan: int) -> Array:
    """Return codes by the upper 13 bits of a float32 and whether a lower one is set: all that rounding depends on."""
    index = np.arange(1 << 14, dtype=np.uint32)
    with np.errstate(invalid="ignore"):  # signalling NaNs among the bit patterns
        return _encode(index >> np.uint32(1) << np.uint32(19) | index & np.uint32(1), middle, top, sign, nan)


_E2M1_TABLE = _table(_E2M1_MIDDLE, 7, 8, 7)
_E4M3_TABLE = _table(_E4M3_MIDDLE, 0x7E, 0x80, 0x7F)


def _look_up(table: Array, x: Lanes) -> Lanes:
    if isinstance(x, int):
        return int(table[x >> 19 << 1 | (x & 0x7FFFF != 0)])
    return table[(x >> np.uint32(19) << np.uint32(1)) | ((x & np.uint32(0x7FFFF)) != 0)]


def to_e2m1(x: Lanes) -> Lanes:
    """Return cvt.rn.satfinite.e2m1: 4 bits, nearest even, NaN to +6."""
    return _look_up(_E2M1_TABLE, x)


def to_e4m3(x: Lanes) -> Lanes:
    """Return cvt.rn.satfinite.e4m3: 8 bits, nearest even, past 448 saturated, NaN to 0x7F."""
    return _look_up(_E4M3_TABLE, x)


_E4M3_BITS = raw(np.concatenate([_E4M3, [np.nan], -_E4M3, [np.nan]]).astype(np.float32))


def from_e4m3(x: Lanes) -> Lanes:
    """Return e4m3 bits as float32 bits."""
    return int(_E4M3_BITS[x & 0xFF]) if isinstance(x, int) else _E4M3_BITS[x & np.uint32(0xFF)]


def compare(kind: str, a: Any, b: Any) -> Any:
    """Return setp on floats; the `u` forms are true for NaN."""
    unordered = np.isnan(a) | np.isnan(b)
    if kind == "num":
        result = ~unordered
    elif kind == "nan":
        result = unordered
    else:
        name = kind if kind in {"eq", "ne", "lt", "le", "gt", "ge"} else kind[:-1]
        plain = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}[name]
        result = plain | unordered if kind.endswith("u") and kind != name else plain & ~unordered
    return bool(result) if np.ndim(result) == 0 else result


def from_integer(x: Lanes) -> Lanes:
    """Return an integer rounded to float32."""
    return raw(np.float32(x)) if isinstance(x, int) else raw(x.astype(np.float32))


def to_integer(x: Lanes, how: str) -> Lanes:
    """Return float32 as a signed 32-bit integer, saturated, NaN to zero."""
    value = np.atleast_1d(f32(x)).astype(np.float64)
    rounded = np.trunc(value) if how == "trunc" else np.rint(value)
    found = np.clip(np.nan_to_num(rounded, nan=0.0), -(2.0**31), 2.0**31 - 1).astype(np.int32).view(np.uint32)
    return int(found[0]) if isinstance(x, int) else found


def fused_half(a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of 16-bit floats held as float32, in float64, for the caller to round once."""
    return np.float64(a) * np.float64(b) + np.float64(c)


def _from_bf16(x: Lanes) -> Lanes:
    return x << 16


def halves(kind: str, function: Any, *sources: Lanes) -> Lanes:
    """Apply a function of float32 to one or two 16-bit floats per register, rounding its results to that type.

    Sums and products of two bfloat16 or float16 have at most 24 significant bits or are rounded twice harmlessly: float32
    has more than twice their precision plus two bits.
    """
    widen = _from_bf16 if kind.startswith("bf16") else from_f16
    back = to_bf16 if kind.startswith("bf16") else to_f16
    scalar = all(isinstance(x, int) for x in sources)
    arrays = [lanes(x, np.uint32) for x in sources]
    if kind.endswith("x2"):  # both halves of all lanes side by side
        wide = [np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) for x in arrays]
    else:
        wide = [x & np.uint32(0xFFFF) for x in arrays]
    result: Array = back(raw(function(*(f32(widen(x)) for x in wide))))
    if kind.endswith("x2"):
        result = result.astype(np.uint16).view(np.uint32)
    return int(result[0]) if scalar else result

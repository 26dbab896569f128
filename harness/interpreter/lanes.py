"""Arithmetic on lane values: what one register of a warp holds.

A value is a Python int where all 32 lanes hold the same bits (a bool for predicates), else a NumPy array of 32 lanes:
uint32 for 16- and 32-bit registers, uint64 for 64-bit ones, bool for predicates. Floats are kept as their bits. Most of a
warp's work is the same in every lane, and a Python int is twenty times faster than an array of 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from harness.interpreter.errors import UnsupportedPtxError

Array = npt.NDArray[Any]
Lanes = Any  # int, bool or Array; every function here takes either

LANES = 32
M16, M32, M64 = 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
LANE_ID = np.arange(LANES, dtype=np.uint32)
FIRST_LANE = LANE_ID == 0
POISON = {"b16": 0xFFFF, "b32": M32, "b64": M64, "pred": False}
_DTYPE = {"b16": np.uint32, "b32": np.uint32, "b64": np.uint64, "pred": np.bool_}


def signed32(x: Lanes) -> Lanes:
    """Return the value of 32 bits as a signed number."""
    if isinstance(x, int):
        return x - ((x & 0x8000_0000) << 1)
    return x.view(np.int32)


def signed64(x: Lanes) -> Lanes:
    """Return the value of 64 bits as a signed number."""
    if isinstance(x, int):
        return x - ((x & (1 << 63)) << 1)
    return x.view(np.int64)


def signed16(x: Lanes) -> Lanes:
    """Return the value of 16 bits as a signed number."""
    if isinstance(x, int):
        return x - ((x & 0x8000) << 1)
    return (x << np.uint32(16)).view(np.int32) >> 16


def sign_extend8(x: Lanes) -> Lanes:
    """Return the low 8 bits sign-extended to 16."""
    if isinstance(x, int):
        return ((x & 0xFF) ^ 0x80) - 0x80 & M16
    return ((x & np.uint32(0xFF)) ^ np.uint32(0x80)) - np.uint32(0x80) & np.uint32(M16)


def bits32(x: Lanes) -> Lanes:
    """Return a number as 32 bits."""
    if isinstance(x, int):
        return int(x) & M32
    return x.view(np.uint32) if x.dtype.itemsize == 4 and x.dtype != np.bool_ else x.astype(np.uint32)


def bits64(x: Lanes) -> Lanes:
    """Return a number as 64 bits."""
    if isinstance(x, int):
        return int(x) & M64
    if x.dtype == np.int32:
        return x.astype(np.int64).view(np.uint64)
    return x.view(np.uint64) if x.dtype.itemsize == 8 else x.astype(np.uint64)


def wide(x: Lanes) -> Lanes:
    """Return 32 bits zero-extended to 64."""
    return x if isinstance(x, int) else x.astype(np.uint64)


def narrow(x: Lanes) -> Lanes:
    """Return the low 32 of 64 bits."""
    return x & M32 if isinstance(x, int) else x.astype(np.uint32)


def pack(low: Lanes, high: Lanes) -> Lanes:
    """Return 64 bits made of two times 32."""
    if isinstance(low, int) and isinstance(high, int):
        return low | high << 32
    pair = np.empty((LANES, 2), dtype=np.uint32)
    pair[:, 0] = low
    pair[:, 1] = high
    return pair.view(np.uint64).reshape(LANES)


def high_half(x: Lanes) -> Lanes:
    """Return the high 32 of 64 bits."""
    return x >> 32 if isinstance(x, int) else x.view(np.uint32)[1::2]


def low_half(x: Lanes) -> Lanes:
    """Return the low 32 of 64 bits."""
    return x & M32 if isinstance(x, int) else x.view(np.uint32)[::2]


def shift_left(x: Lanes, by: Lanes, width: int) -> Lanes:
    """Return shl: amounts past the width give zero."""
    mask = (1 << width) - 1
    if isinstance(by, int):
        return (x << by) & mask if by < width else 0
    kind = np.uint64 if width == 64 else np.uint32
    amount = np.minimum(by, width - 1).astype(kind)
    return np.where(by < width, (lanes(x, kind) << amount) & kind(mask), kind(0))


def shift_right(x: Lanes, by: Lanes, width: int, *, is_signed: bool) -> Lanes:
    """Return shr: amounts past the width give zero, or the sign."""
    if is_signed:
        x = {16: signed16, 32: signed32, 64: signed64}[width](x)
    if isinstance(by, int):
        by = min(by, width - 1) if is_signed else by
        if not is_signed and by >= width:
            return 0
        result = x >> by
    else:
        if isinstance(x, int):
            x = np.full(LANES, x, dtype=np.int64 if is_signed else np.uint64)
        amount = np.minimum(by, width - 1).astype(x.dtype)
        result = x >> amount
        if not is_signed:
            result = np.where(by < width, result, 0)
    if width == 64:
        return bits64(result)
    mask = (1 << width) - 1
    return (
        int(result) & mask
        if isinstance(result, int)
        else result.astype(np.int64).astype(np.uint32) & np.uint32(mask)
    )


def multiply_wide(a: Lanes, b: Lanes, *, is_signed: bool) -> Lanes:
    """Return the 64-bit product of two 32-bit numbers."""
    if is_signed:
        a, b = signed32(a), signed32(b)
    if isinstance(a, int) and isinstance(b, int):
        return (a * b) & M64
    kind = np.int64 if is_signed else np.uint64
    product: Array = lanes(a, kind) * lanes(b, kind)
    return product.view(np.uint64)


def multiply_high(a: Lanes, b: Lanes, width: int, *, is_signed: bool) -> Lanes:
    """Return the high half of a product."""
    if width == 32:
        product = multiply_wide(a, b, is_signed=is_signed)
        return product >> 32 if isinstance(product, int) else high_half(product)
    if isinstance(a, int) and isinstance(b, int):
        if is_signed:
            convert = signed16 if width == 16 else signed64
            a, b = convert(a), convert(b)
        return ((a * b) >> width) & ((1 << width) - 1)
    if width == 16 and not is_signed:
        return (a * b) >> 16
    return object_map(lambda x, y: multiply_high(x, y, width, is_signed=is_signed), a, b, width)


def multiply_low64(a: Lanes, b: Lanes) -> Lanes:
    """Return the low 64 bits of a product."""
    if isinstance(a, int) and isinstance(b, int):
        return (a * b) & M64
    return lanes(a, np.uint64) * lanes(b, np.uint64)


def divide(a: Lanes, b: Lanes, width: int, *, is_signed: bool, remainder: bool) -> Lanes:
    """Return div or rem of integers: truncating, as in C."""
    if isinstance(a, int) and isinstance(b, int):
        mask = (1 << width) - 1
        if is_signed:
            convert = {16: signed16, 32: signed32, 64: signed64}[width]
            a, b = convert(a), convert(b)
        if b == 0:
            return mask  # the ISA leaves it unspecified
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return (a - quotient * b if remainder else quotient) & mask
    if width == 32:
        first, second = (lanes(x, np.uint32) for x in (a, b))
        wide_a, wide_b = ((x.view(np.int32) if is_signed else x).astype(np.int64) for x in (first, second))
        safe = np.where(wide_b == 0, 1, wide_b)
        quotient = np.abs(wide_a) // np.abs(safe) * np.sign(wide_a) * np.sign(safe)
        found: Array = wide_a - quotient * wide_b if remainder else quotient
        return np.where(wide_b == 0, M32, found & M32).astype(np.uint32)
    return object_map(lambda x, y: divide(x, y, width, is_signed=is_signed, remainder=remainder), a, b, width)


def extreme(a: Lanes, b: Lanes, *, largest: bool, width: int, is_signed: bool) -> Lanes:
    """Return min or max of integers."""
    flip = (1 << (width - 1)) if is_signed else 0
    first = ((a ^ flip) > (b ^ flip)) if largest else ((a ^ flip) < (b ^ flip))
    return select(first, a, b, f"b{width}")


def select(p: Lanes, a: Lanes, b: Lanes, kind: str) -> Lanes:
    """Return a where the predicate holds, else b."""
    if p is True:
        return a
    if p is False:
        return b
    dtype = _DTYPE[kind]
    return np.where(p, lanes(a, dtype), lanes(b, dtype))


def merge(mask: Array, new: Lanes, old: Lanes, kind: str) -> Lanes:
    """Return `new` in the active lanes and `old`, poison if it was never written, in the others."""
    if old is None:
        old = POISON[kind]
    if isinstance(new, int) and isinstance(old, int) and new == old:
        return new
    dtype = _DTYPE[kind]
    return np.where(mask, lanes(new, dtype), lanes(old, dtype))


def lanes(x: Lanes, dtype: Any) -> Array:
    """Return a value as an array of 32 lanes."""
    if isinstance(x, int):
        return np.full(LANES, x, dtype=dtype)
    array: Array = x if x.dtype == dtype else x.astype(dtype)
    return array


def object_map(function: Any, a: Lanes, b: Lanes, width: int) -> Array:
    """Apply a function of Python ints lane by lane: for what NumPy has no operation."""
    dtype = np.uint64 if width == 64 else np.uint32
    first, second = lanes(a, dtype), lanes(b, dtype)
    return np.array([function(int(x), int(y)) for x, y in zip(first, second, strict=True)], dtype=dtype)


def uniform(x: Lanes, mask: Array | None, what: str) -> int:
    """Return the one value that all active lanes hold.

    Raises:
        UnsupportedPtxError: they differ.
    """
    if isinstance(x, int):
        return x
    active = x if mask is None else x[mask]
    if (active != active[0]).any():
        raise UnsupportedPtxError(f"{what} differs between the active lanes, which is not modelled")
    return int(active[0])


def shuffle(mode: str, a: Lanes, b: Lanes, c: Lanes) -> tuple[Lanes, Lanes]:
    """Return shfl.sync's value and predicate for a full warp (PTX ISA 9.7.9.6)."""
    bound, segment = (c & 31), (c >> 8) & 31
    source: Any
    if isinstance(a, int) and isinstance(b, int) and mode == "idx" and isinstance(c, int):
        return a, True
    lane = LANE_ID.astype(np.int64)
    b, bound, segment = lanes(b, np.int64) & 31, lanes(bound, np.int64), lanes(segment, np.int64)
    high = (lane & segment) | (bound & ~segment & 31)
    low = lane & segment
    if mode == "up":
        source, ok = lane - b, (lane - b) >= high
    elif mode == "down":
        source, ok = lane + b, (lane + b) <= high
    elif mode == "bfly":
        source, ok = lane ^ b, (lane ^ b) <= high
    else:
        source = low | (b & ~segment & 31)
        ok = source <= high
    source = np.where(ok, source, lane)
    if isinstance(a, int):
        return a, ok
    result = a[source]
    if (source == source[0]).all():
        return int(result[0]), bool(ok.all()) or ok
    return result, ok


def population(x: Lanes, width: int) -> Lanes:
    """Return popc."""
    if isinstance(x, int):
        return x.bit_count()
    return object_map(lambda v, _: v.bit_count(), x, 0, width).astype(np.uint32)


def byte_permute(a: Lanes, b: Lanes, selector: Lanes) -> Lanes:
    """Return prmt.b32 in its default mode: each nibble of the selector picks a byte; bit 3 replicates its sign."""
    both = pack(a, b)
    result: Lanes = 0
    for at in range(4):
        pick = (selector >> (4 * at)) & 7
        if isinstance(both, int) and isinstance(pick, int):
            byte: Lanes = (both >> (8 * pick)) & 0xFF
        else:
            byte = (lanes(both, np.uint64) >> (lanes(pick, np.uint64) * np.uint64(8))).astype(
                np.uint32
            ) & np.uint32(0xFF)
        replicate = (selector >> (4 * at + 3)) & 1
        if isinstance(replicate, int):
            byte = byte if not replicate else select(byte >= 0x80, 0xFF, 0, "b32")
        else:
            byte = np.where(replicate == 1, np.where(byte >= 0x80, 0xFF, 0), byte).astype(np.uint32)
        result = result | (byte << (8 * at))
    return result

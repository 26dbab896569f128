"""Triton kernel of `launch.py`: quantize to NVFP4, every comparison that of real numbers.

bfloat16 without NaN goes two elements to an integer, each compared with the first bfloat16 of each code, which a block's byte
and the encode scale give; everything else in float32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, unused-ignore"
from __future__ import annotations

import triton
import triton.language as tl

from reference.fast.kernels import e4m3


@triton.jit
def _product(x, y):
    """Return two float32 that decide every comparison of the real product of float32 x and y, not negative, with a float32.

    The product is at least some float32 that is not tiny where the first is, and above it where the second is at least it:
    the first is the rounded product, or the float32 below where rounding went up; the second likewise where it did not go
    down. What rounding lost is exact in one fused multiply-add.
    """
    rounded = x * y
    lost = tl.fma(x, y, rounded * -1.0)
    below = (rounded.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    return tl.where(lost >= 0, rounded, below), tl.where(lost > 0, rounded, below)


@triton.jit
def _next_to(x):
    """Return the byte of E4M3 next to float32 x that is not negative, or one beside it, at least 1."""
    clamped = tl.minimum(tl.maximum(x, 0.0), 448.0)
    normal = ((clamped.to(tl.int32, bitcast=True) + (1 << 19)) >> 20) - (120 << 3)
    subnormal = (clamped * 512.0 + 0.5).to(tl.int32)
    return tl.maximum(tl.minimum(tl.where(clamped < 0.015625, subnormal, normal), 126), 1)


@triton.jit
def _is_past(at_least, above, byte):
    """Return whether a block gets a byte of 1 to 126 or a larger one: six times the middle below it, exact in float32, decides."""
    middle = 3.0 * (e4m3(byte - 1) + e4m3(byte))
    return tl.where((byte & 1) == 0, at_least, above) >= middle


@triton.jit
def _first(wanted, encode, or_equal: tl.constexpr):
    """Return the smallest float32 whose real product with encode is above wanted, or equal; NaN where the quotient is NaN.

    The quotient is rounded to nearest, and one fused multiply-add says on which side of it the real one lies.
    """
    quotient = tl.div_rn(wanted, encode)
    past = tl.fma(quotient, encode, wanted * -1.0)
    next_one = (quotient.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    # A GPU's NaN has all bits set: one more is -0.
    is_it = past >= 0 if or_equal else past > 0
    return tl.where(is_it | (quotient != quotient), quotient, next_one)  # noqa: PLR0124 - true for NaN


@triton.jit
def _magnitude(x, at, inside):
    """Return the magnitudes, float32, of elements that are loaded, and their signs, at bit 3."""
    value = tl.load(x + at, mask=inside, other=0)
    if x.dtype.element_ty == tl.int16:
        bits = value.to(tl.int32) << 16
    else:
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
    return (bits & 0x7FFFFFFF).to(tl.float32, bitcast=True), (bits >> 28) & 8


@triton.jit
def _largest(magnitude):
    return tl.max(tl.where(magnitude != magnitude, -1.0, magnitude), axis=1)  # noqa: PLR0124 - true for NaN


@triton.jit
def _codes(magnitude, sign, power, t1, t2, t3, t4, t6, t7):
    """Return the code of each magnitude times its block's power by the first number of each code, NaN where there is none."""
    x = magnitude * power[:, None]
    of_4 = x >= t4[:, None]
    of_2 = x >= tl.where(of_4, t6[:, None], t2[:, None])
    low = tl.where(of_2, t3[:, None], t1[:, None])
    of_1 = x >= tl.where(of_4, tl.where(of_2, t7[:, None], (t3 * 2.0)[:, None]), low)
    code = tl.where(of_4, 4, 0) + tl.where(of_2, 2, 0) + tl.where(of_1, 1, 0)
    return tl.where(x != x, 7, code | sign).to(tl.uint8)  # noqa: PLR0124 - true for NaN


@triton.jit
def _byte(largest, encode):
    """Return the byte of E4M3, 0 to 126, of blocks whose largest magnitude is a number, and of infinity."""
    at_least, above = _product(largest, encode)
    guess = _next_to(largest * encode * 0.16666667)  # one off at most
    byte = guess - 1 + _is_past(at_least, above, guess).to(tl.int32)
    return byte + (_is_past(at_least, above, guess + 1) & (guess < 126)).to(tl.int32)


@triton.jit
def _first_bfloat16(wanted, encode, reciprocal, or_equal: tl.constexpr):
    """Return the bits of the smallest bfloat16 whose real product with encode is above wanted, or equal.

    The bfloat16 nearest to the quotient, or one as near, is it or just below: one fused multiply-add decides.
    """
    near = ((wanted * reciprocal).to(tl.int32, bitcast=True) + 0x8000) & -0x10000
    past = tl.fma(near.to(tl.float32, bitcast=True), encode, wanted * -1.0)
    short = past < 0 if or_equal else past <= 0
    return (near >> 16) + short.to(tl.int32)


@triton.jit
def _twice_less_one(first):
    """Return what a pair of magnitudes is taken from: the top bit of each half is left where a magnitude is below first."""
    return ((first - 1) | 0x8000)[:, None] * 0x10001


@triton.jit
def _code_pairs(x, k1, k2, k3, k4, k5, k6, k7):
    """Return the codes, in the low byte and the next, of pairs of bfloat16, none of which is NaN.

    How many of the seven are reached, in binary: the lowest digit is their parity, the next that of the 2nd, 4th and 6th.
    """
    pair = x & 0x7FFF7FFF
    d2, d4, d6 = k2 - pair, k4 - pair, k6 - pair
    of_2 = d2 ^ d4 ^ d6
    of_1 = of_2 ^ (k1 - pair) ^ (k3 - pair) ^ (k5 - pair) ^ (k7 - pair)
    code = (~of_1 >> 15) & 0x00010001 | (~of_2 >> 14) & 0x00020002 | (~d4 >> 13) & 0x00040004
    code |= (x >> 12) & 0x00080008
    return (code | (code >> 8)).to(tl.int16)


@triton.jit
def _quantize_pairs(x, codes, block_scale, block, inside, encode):
    """Quantize a tile of blocks of bfloat16, two elements to an integer; return whether there is a NaN: nothing is written then.

    Args:
        x: the tile, 8 int32 a block.
        codes: likewise, 8 int16.
        block_scale: likewise, uint8.
        block: numbers of the blocks.
        inside: which there are.
        encode: scale, such that no threshold is subnormal or infinite.
    """
    at, has = block[:, None] * 8 + tl.arange(0, 4)[None, :], inside[:, None]
    left, right = tl.load(x + at, mask=has, other=0), tl.load(x + at + 4, mask=has, other=0)
    even = tl.maximum((left << 16) & 0x7FFF0000, (right << 16) & 0x7FFF0000)
    odd = tl.maximum(left & 0x7FFFFFFF, right & 0x7FFFFFFF)  # what is below decides nothing
    largest = tl.max(tl.maximum(even, odd), axis=1) & 0x7FFF0000
    has_nan = tl.max(largest, axis=0) > 0x7F800000
    if not has_nan:
        byte = _byte(largest.to(tl.float32, bitcast=True), encode)
        tl.store(block_scale + block, byte.to(tl.uint8), mask=inside)
        divisor, reciprocal, zero = e4m3(byte), 1.0 / encode, byte == 0
        # Middles above an odd code, 0.75, 1.75 and 3.5, count as past; those above an even one do not.
        t1 = tl.where(zero, 1, _first_bfloat16(divisor * 0.25, encode, reciprocal, False))
        t2 = tl.where(zero, 1, _first_bfloat16(divisor * 0.75, encode, reciprocal, True))
        t3 = _first_bfloat16(divisor * 1.25, encode, reciprocal, False)
        t4 = _first_bfloat16(divisor * 1.75, encode, reciprocal, True)
        k1, k2 = _twice_less_one(t1), _twice_less_one(t2)
        k3, k4 = _twice_less_one(tl.where(zero, 1, t3)), _twice_less_one(tl.where(zero, 1, t4))
        k5, k6 = _twice_less_one(tl.where(zero, 1, t3 + 0x80)), _twice_less_one(tl.where(zero, 1, t4 + 0x80))
        k7 = _twice_less_one(tl.where(zero, 1, t3 + 0x100))
        tl.store(codes + at, _code_pairs(left, k1, k2, k3, k4, k5, k6, k7), mask=has)
        tl.store(codes + at + 4, _code_pairs(right, k1, k2, k3, k4, k5, k6, k7), mask=has)
    return has_nan


@triton.jit
def _quantize_any(x, codes, block_scale, block, inside, encode):
    """Quantize a tile of blocks of any type, any encode scale; arguments as above, 16 elements a block."""
    at, has = block[:, None] * 16 + tl.arange(0, 8)[None, :], inside[:, None]
    left, left_sign = _magnitude(x, at, has)
    right, right_sign = _magnitude(x, at + 8, has)
    largest = tl.maximum(_largest(left), _largest(right))  # below zero where there is nothing but NaN
    encoded = largest * encode
    is_nan = (largest < 0) | (encoded != encoded)  # noqa: PLR0124 - true for NaN
    byte = tl.where(is_nan, 127, _byte(largest, encode))
    tl.store(block_scale + block, byte.to(tl.uint8), mask=inside)
    # A power of two keeps everything that can decide a normal number: what it makes infinite or zero is far past all
    # thresholds, or far below. Under a scale of zero every magnitude but zero is infinite.
    zero, nothing = byte == 0, float("nan")
    power = tl.where(encode > 1.0, 1.8446744073709552e19, 5.421010862427522e-20)  # 2^64, 2^-64
    power = tl.where(zero, 1.0, power)
    divisor = e4m3(byte) * power
    # Middles above an odd code, 0.75, 1.75 and 3.5, count as past; those above an even one, 0.25, 1.25, 2.5 and 5, do not.
    t1 = tl.where(zero, nothing, _first(divisor * 0.25, encode, False))
    t2 = tl.where(zero, nothing, _first(divisor * 0.75, encode, True))
    t3 = _first(divisor * 1.25, encode, False)
    t4 = _first(divisor * 1.75, encode, True)
    t4 = tl.where(zero, tl.where(encode > 0, 1.401298464324817e-45, nothing), t4)
    t6, t7 = tl.where(zero, t4, t4 * 2.0), tl.where(zero, t4, t3 * 4.0)
    code = _codes(left, left_sign, power, t1, t2, t3, t4, t6, t7)
    tl.store(codes + at, code, mask=has)
    code = _codes(right, right_sign, power, t1, t2, t3, t4, t6, t7)
    tl.store(codes + at + 8, code, mask=has)


@triton.jit
def quantize(x, codes, block_scale, scale, group_of, blocks_of_row, tile: tl.constexpr, pairs: tl.constexpr):
    """Quantize blocks of 16, in float32 alone: every comparison is that of real numbers.

    A thread has whole blocks, in two halves of what one instruction loads, so that what a block needs is computed once.

    Args:
        x: `(blocks, 16)` float16 or float32, or int16, the bits of bfloat16.
        codes: `(blocks, 16)` uint8.
        block_scale: `(blocks,)` uint8.
        scale: `(groups,)` float32, encode scales.
        group_of: `(rows,)` int32, whose encode scale a row of blocks has.
        blocks_of_row: of one row.
        tile: blocks of one program.
        pairs: x holds bfloat16 and lies at a multiple of four bytes.
    """
    tiles = tl.cdiv(blocks_of_row, tile)
    row, first = tl.program_id(0) // tiles, tl.program_id(0) % tiles * tile
    start = row.to(tl.int64) * blocks_of_row + first
    x += start * 16
    codes += start * 16
    block_scale += start
    block = tl.arange(0, tile)
    inside = first + block < blocks_of_row
    encode = tl.load(scale + tl.load(group_of + row))
    rest = True
    if pairs:  # noqa: SIM102 - known when compiled, the next is not
        if (encode > 1e-30) & (encode < 1e30):
            of_pairs = (
                x.to(tl.pointer_type(tl.int32), bitcast=True),
                codes.to(tl.pointer_type(tl.int16), bitcast=True),
            )
            rest = _quantize_pairs(of_pairs[0], of_pairs[1], block_scale, block, inside, encode)
    if rest:
        _quantize_any(x, codes, block_scale, block, inside, encode)

"""The Triton kernels of `launch.py`: quantize, decode, and the exact product on tensor cores."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, unused-ignore"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _e2m1(code):
    """Return the value of each code, float32: four times it is a whole number, from which comes an exact quarter."""
    magnitude = (code & 7).to(tl.int32)
    quarters = tl.where(magnitude < 2, 2 * magnitude, (2 + (magnitude & 1)) << (magnitude >> 1))
    return tl.where((code & 8) == 0, 0.25, -0.25) * quarters.to(tl.float32)


@triton.jit
def _e4m3(byte):
    """Return the value of each byte, float32."""
    exponent, mantissa = ((byte >> 3) & 15).to(tl.int32), (byte & 7).to(tl.int32)
    steps = tl.where(exponent == 0, mantissa, mantissa + 8).to(tl.float32)
    # 2^(exponent - 10), and 2^-9 for subnormals, by its bits
    step = ((tl.maximum(exponent, 1) + 117) << 23).to(tl.float32, bitcast=True)
    value = tl.where((byte & 0x80) == 0, 1.0, -1.0) * (steps * step)
    return tl.where((byte & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def _from_bits(bits, form: tl.constexpr):
    """Return float64 magnitudes from their bits, int32; form: 0 bfloat16, 1 float16, 2 float32."""
    if form == 0:
        return (bits << 16).to(tl.float32, bitcast=True).to(tl.float64)
    if form == 1:
        return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float64)
    return bits.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _to_bits(x, form: tl.constexpr):
    """Return the bits, int32, of the magnitude next to float64 x that is not negative."""
    if form == 0:
        return x.to(tl.float32).to(tl.int32, bitcast=True) >> 16
    if form == 1:
        return x.to(tl.float32).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    return x.to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def _first(near, scale, divisor, middle, at_middle, infinity: tl.constexpr, form: tl.constexpr):
    """Return the bits of the first magnitude with magnitude * scale / divisor above a middle, or at it where that counts."""
    lowest = tl.maximum(tl.minimum(_to_bits(near, form), infinity), 2) - 2
    count = tl.zeros_like(lowest)
    for step in tl.static_range(5):
        tried = lowest + step
        got = _from_bits(tried, form) * scale / divisor
        reached = (got > middle) | ((got == middle) & at_middle) | (tried > infinity)
        count += tl.where(reached, 0, 1)
    return lowest + count


@triton.jit
def find_thresholds(scale, of_byte, of_code, infinity: tl.constexpr, form: tl.constexpr):
    """Write the thresholds of one encode scale: see `thresholds`. One program a scale.

    Here a scale may be anything. NaN and zero times infinity are NaN, and so is infinity times zero, a block of zeros: the
    only case in which the byte does not grow with the magnitude.

    Args:
        scale: `(groups,)` float64.
        of_byte: `(groups, 128)` int32; in the last column 1 where the byte of a block of zeros is NaN, else 0.
        of_code: `(groups, 128, 8)` int32; the last column stays as it is.
        infinity: its bits in the type of the elements.
        form: of the elements, as in `_from_bits`.
    """
    group = tl.program_id(0)
    encode = tl.load(scale + group)
    below = tl.arange(0, 128)
    here, above = _e4m3(below).to(tl.float64), _e4m3(below + 1).to(tl.float64)
    last = below >= 126  # above 448 is nothing but NaN
    middle = tl.where(last, float("inf"), (here + above) * 0.5)
    near = tl.where(last, float("inf"), middle * 6.0 / encode)
    found = _first(near, encode, 6.0, middle, (below & 1) == 1, infinity, form)
    found = tl.where(last, infinity + 1, found)
    found = tl.where(encode > 0, found, tl.where(encode == 0, infinity, infinity + 1))
    found = tl.where(encode == encode, found, 0)  # noqa: PLR0124 - false for NaN
    is_infinite = (encode == float("inf")).to(tl.int32)
    tl.store(of_byte + group * 128 + below, tl.where(below == 127, is_infinite, found))
    divisor = _e4m3(below).to(tl.float64)
    for code in tl.static_range(7):
        # the middles between codes: 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5
        middle = 0.25 + 0.5 * code if code < 4 else (2.5 + (code - 4) if code < 6 else 5.0)
        near = middle * divisor / encode
        near = tl.where(near == near, near, float("inf"))  # noqa: PLR0124 - as above
        found = _first(near, encode, divisor, middle, code % 2 == 1, infinity, form)
        tl.store(of_code + (group * 128 + below) * 8 + code, tl.where(encode > 0, found, infinity + 1))


@triton.jit
def quantize(
    x, codes, block_scale, of_byte, of_code, group_of, blocks, blocks_of_row,
    infinity: tl.constexpr, sign: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Quantize blocks of 16.

    Args:
        x: `(blocks, 16)` int16 or int32, the bits of floating point numbers.
        codes: `(blocks, 16)` uint8.
        block_scale: `(blocks,)` uint8.
        of_byte: from `find_thresholds`.
        of_code: likewise.
        group_of: `(rows,)` int32, whose encode scale a row of blocks has.
        blocks: number of them.
        blocks_of_row: of one row.
        infinity: its bits.
        sign: bits to the right of the sign.
        wide: x is int32.
        tile: blocks of one program.
    """
    block = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = block < blocks
    group = tl.load(group_of + block // blocks_of_row, mask=inside, other=0)
    at = block[:, None] * 16 + tl.arange(0, 16)[None, :]
    raw = tl.load(x + at, mask=inside[:, None], other=0).to(tl.int32)
    bits = raw & (0x7FFFFFFF if wide else 0x7FFF)
    nan = bits > infinity
    largest = tl.max(tl.where(nan, 0, bits), axis=1)
    largest = tl.where(tl.min(bits, axis=1) > infinity, infinity + 1, largest)
    byte = tl.zeros((tile,), tl.int32)
    for power in tl.static_range(7):  # how many thresholds it reaches: half of those that are left at each step
        further = byte + (64 >> power)
        reached = tl.load(of_byte + group * 128 + further - 1, mask=inside, other=0) <= largest
        byte = tl.where(reached, further, byte)
    of_zeros = tl.load(of_byte + group * 128 + 127, mask=inside, other=0)
    byte = tl.where((largest == 0) & (of_zeros == 1), 127, byte)
    tl.store(block_scale + block, byte.to(tl.uint8), mask=inside)
    code = ((raw >> sign) & 1) << 3
    for number in tl.static_range(7):
        first = tl.load(of_code + (group * 128 + byte) * 8 + number, mask=inside, other=0)
        code += (bits >= first[:, None]).to(tl.int32)
    tl.store(codes + at, tl.where(nan, 7, code).to(tl.uint8), mask=inside[:, None])


@triton.jit
def decode(codes, block_scale, out, largest, blocks, tile: tl.constexpr):
    """Write codes times block scales.

    Args:
        codes: `(blocks, 16)` uint8.
        block_scale: `(blocks,)` uint8.
        out: `(blocks, 16)`, any floating point type.
        largest: `(1,)` int32, raised where a code is above 15.
        blocks: number of them.
        tile: blocks of one program.
    """
    block = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = block < blocks
    at = block[:, None] * 16 + tl.arange(0, 16)[None, :]
    code = tl.load(codes + at, mask=inside[:, None], other=0)
    value = _e2m1(code) * _e4m3(tl.load(block_scale + block, mask=inside, other=0))[:, None]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside[:, None])
    highest = tl.max(tl.max(code.to(tl.int32), axis=1), axis=0)
    if highest > 15:
        tl.atomic_max(largest, highest)


@triton.jit
def decode_with_norms(codes, block_scale, out, norm, k, chunks, chunk: tl.constexpr, at_once: tl.constexpr):
    """Write decoded rows, and how large each chunk of a row is in units of its own grid.

    Args:
        codes: `(rows, k)` uint8.
        block_scale: `(rows, k / 16)` uint8.
        out: `(rows, k)` float16 or bfloat16.
        norm: `(rows, chunks)` float32: a bound on the Euclidean norm over the step of which every element is a multiple.
        k: elements of a row.
        chunks: of a row, the last of which may be short.
        chunk: elements of one.
        at_once: chunks of one program.
    """
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * at_once
    number = first + tl.arange(0, at_once)
    block = (number[:, None] * (chunk // 16) + tl.arange(0, chunk // 16)[None, :]) * 16
    byte = tl.load(block_scale + row * (k // 16) + block // 16, mask=block < k, other=0)
    at = block[:, :, None] + tl.arange(0, 16)[None, None, :]
    code = tl.load(codes + row * k + at, mask=at < k, other=0)
    value = _e2m1(code) * _e4m3(byte)[:, :, None]
    tl.store(out + row * k + at, value.to(out.dtype.element_ty), mask=at < k)
    # The step of a block is half the lowest bit of its scale: half is the step of the codes.
    exponent, mantissa = ((byte >> 3) & 15).to(tl.int32), (byte & 7).to(tl.int32)
    mantissa = tl.where(exponent == 0, mantissa, mantissa | 8)
    lowest = tl.where(mantissa & 1 != 0, 0, tl.where(mantissa & 2 != 0, 1, tl.where(mantissa & 4 != 0, 2, 3)))
    step = tl.where(mantissa == 0, 30, lowest + tl.maximum(exponent, 1) - 11)
    step = tl.min(step, axis=1)
    squares = tl.sum(tl.sum(value * value, axis=2), axis=1)
    size = tl.sqrt(squares) * 1.001  # more than float32 can have lost
    size *= ((127 - step) << 23).to(tl.float32, bitcast=True)
    tl.store(norm + row * chunks + number, size, mask=number < chunks)


@triton.jit
def product(
    a, a_norm, b, b_norm, alpha, out, doubtful, tile_expert, tile_row, tile_rows, n, k, chunks,
    limit: tl.constexpr, chunk: tl.constexpr, step: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Write alpha * a @ b.T, chunks of k by tensor cores, their sums in float64; note tiles in which that may be inexact.

    Args:
        a: `(all rows, k)` float16 or bfloat16.
        a_norm: `(all rows, chunks)`, from `decode_with_norms`.
        b: `(experts, n, k)` likewise.
        b_norm: `(experts, n, chunks)`.
        alpha: `(experts,)` float64.
        out: `(all rows, n)`.
        doubtful: `(tiles along n, tiles of rows)` int32, 1 where a chunk's product is not certain to be exact.
        tile_expert: `(tiles of rows,)` int32, whose rows.
        tile_row: likewise, the first of them.
        tile_rows: likewise, how many.
        n: columns.
        k: elements of a dot product, a multiple of 16.
        chunks: of k.
        limit: norms whose product is below this are certain.
        chunk: elements of one chunk.
        step: elements of one instruction's loop.
        rows: of a tile.
        columns: of a tile.
    """
    tile, across = tl.program_id(0), tl.program_id(1)
    expert = tl.load(tile_expert + tile).to(tl.int64)
    first, count = tl.load(tile_row + tile).to(tl.int64), tl.load(tile_rows + tile)
    row, column = tl.arange(0, rows), across * columns + tl.arange(0, columns)
    row_in, column_in = row < count, column < n
    row_at, column_at = first + tl.where(row_in, row, 0), expert * n + tl.where(column_in, column, 0)
    total = tl.zeros((rows, columns), tl.float64)
    certain = tl.full((rows, columns), 1, tl.int1)
    inner = tl.arange(0, step)
    for number in range(chunks):
        partial = tl.zeros((rows, columns), tl.float32)
        for start in tl.static_range(0, chunk, step):
            along = number * chunk + start + inner
            left = tl.load(a + row_at[:, None] * k + along[None, :], mask=along[None, :] < k, other=0.0)
            right = tl.load(b + column_at[None, :] * k + along[:, None], mask=along[:, None] < k, other=0.0)
            partial = tl.dot(left, right, partial)
        total += partial.to(tl.float64)
        of_row, of_column = tl.load(a_norm + row_at * chunks + number), tl.load(b_norm + column_at * chunks + number)
        certain = certain & (of_row[:, None] * of_column[None, :] < limit)
    total *= tl.load(alpha + expert)
    inside = row_in[:, None] & column_in[None, :]
    if out.dtype.element_ty == tl.float64:
        stored = total
    else:
        stored = total.to(tl.float32).to(out.dtype.element_ty)
    tl.store(out + row_at[:, None] * n + column[None, :], stored, mask=inside)
    doubt = tl.max(tl.max(tl.where(inside & (certain == 0), 1, 0), axis=1), axis=0)
    tl.store(doubtful + across * tl.num_programs(0) + tile, doubt)


@triton.jit
def product_in_float64(
    a, b, alpha, out, doubtful, tile_expert, tile_row, tile_rows, n, k,
    step: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Write the doubtful tiles of `product` again, in float64: a part of the rows in each program; arguments as there."""
    tile, across, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if tl.load(doubtful + across * tl.num_programs(0) + tile) == 0:
        return
    expert = tl.load(tile_expert + tile).to(tl.int64)
    first, count = tl.load(tile_row + tile).to(tl.int64), tl.load(tile_rows + tile)
    row, column = part * (rows // parts) + tl.arange(0, rows // parts), across * columns + tl.arange(0, columns)
    row_in, column_in = row < count, column < n
    row_at, column_at = first + tl.where(row_in, row, 0), expert * n + tl.where(column_in, column, 0)
    total = tl.zeros((rows // parts, columns), tl.float64)
    for start in range(0, k, step):
        along = start + tl.arange(0, step)
        left = tl.load(a + row_at[:, None] * k + along[None, :], mask=along[None, :] < k, other=0.0)
        right = tl.load(b + column_at[None, :] * k + along[:, None], mask=along[:, None] < k, other=0.0)
        total = tl.dot(left.to(tl.float64), right.to(tl.float64), total, out_dtype=tl.float64)
    total *= tl.load(alpha + expert)
    if out.dtype.element_ty == tl.float64:
        stored = total
    else:
        stored = total.to(tl.float32).to(out.dtype.element_ty)
    tl.store(out + row_at[:, None] * n + column[None, :], stored, mask=row_in[:, None] & column_in[None, :])

"""Triton kernels of `launch.py`: decode, and the exact product on tensor cores."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return, unused-ignore"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _e2m1(code):
    """Return the value of each code, float32: its bits, moved to where float16 has them, are 2^-14 of it."""
    wide = code.to(tl.int16)
    bits = (
        (wide << 12) | (wide << 9)
    ) & -0x7200  # 0x8E00: the sign, two bits of the exponent and one of the mantissa
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def e4m3(byte):
    """Return the value of each byte, float32: its bits, moved to where float32 has them, are 2^-120 of it."""
    wide = byte.to(tl.int32)
    magnitude = ((wide & 0x7F) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36
    magnitude = tl.where((wide & 0x7F) == 0x7F, float("nan"), magnitude)
    return tl.where((wide & 0x80) == 0, magnitude, magnitude * -1.0)  # a minus is 0 - x here: +0 of +0


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
    first = tl.program_id(0).to(tl.int64) * tile
    codes += first * 16
    out += first * 16
    block = tl.arange(0, tile)
    inside = first + block < blocks
    at = block[:, None] * 16 + tl.arange(0, 16)[None, :]
    code = tl.load(codes + at, mask=inside[:, None], other=0)
    value = _e2m1(code) * e4m3(tl.load(block_scale + first + block, mask=inside, other=0))[:, None]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside[:, None])
    highest = tl.max(tl.max(code.to(tl.int32), axis=1), axis=0)
    if highest > 15:
        tl.atomic_max(largest, highest)


@triton.jit
def decode_with_norms(
    codes, block_scale, out, norm, largest, k, chunks, chunk: tl.constexpr, at_once: tl.constexpr
):
    """Write decoded rows, and how large each chunk of a row is in units of its own grid.

    Args:
        codes: `(rows, k)` uint8.
        block_scale: `(rows, k / 16)` uint8.
        out: `(rows, k)` float16 or bfloat16.
        norm: `(rows, chunks)` float32: a bound on the Euclidean norm over the step of which every element is a multiple.
        largest: `(1,)` int32, raised where a code is above 15.
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
    value = _e2m1(code) * e4m3(byte)[:, :, None]
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
    highest = tl.max(tl.max(tl.max(code.to(tl.int32), axis=2), axis=1), axis=0)
    if highest > 15:
        tl.atomic_max(largest, highest)


@triton.jit
def product(
    a, a_norm, b, b_norm, alpha, out, doubtful, tile_expert, tile_row, tile_rows, n, k,
    limit: tl.constexpr, chunk: tl.constexpr, step: tl.constexpr, again: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Write alpha * a @ b.T, chunks of k by tensor cores, their sums in float64; note tiles in which that may be inexact.

    Args:
        a: `(all rows, k)` float16 or bfloat16.
        a_norm: `(all rows, chunks)`, from `decode_with_norms`.
        b: `(experts, n, k)` likewise.
        b_norm: `(experts, n, chunks)`.
        alpha: `(experts,)` float64.
        out: `(all rows, n)` float32 or float64.
        doubtful: `(tiles along n, tiles of rows)` int32, 1 where a chunk's product is not certain to be exact: norms of all
            its rows and columns are asked together, since asking each pair costs as much as multiplying it.
        tile_expert: `(tiles of rows,)` int32, whose rows.
        tile_row: likewise, the first of them.
        tile_rows: likewise, how many.
        n: columns.
        k: elements of a dot product, a multiple of 16.
        limit: norms whose product is below this are certain.
        chunk: elements of one chunk.
        step: of these that are loaded at a time.
        again: write only the tiles that are doubtful, by chunks of which each is certain.
        rows: of a tile.
        columns: of a tile.
    """
    tile, across = tl.program_id(0), tl.program_id(1)
    doubtful += across * tl.num_programs(0) + tile
    if again:  # noqa: SIM102 - known when compiled, the next is not
        if tl.load(doubtful) == 0:
            return
    expert = tl.load(tile_expert + tile).to(tl.int64)
    first, count = tl.load(tile_row + tile).to(tl.int64), tl.load(tile_rows + tile)
    row, column = tl.arange(0, rows), across * columns + tl.arange(0, columns)
    row_in, column_in = row < count, column < n
    row_at, column_at = first + tl.where(row_in, row, 0), expert * n + tl.where(column_in, column, 0)
    total = tl.zeros((rows, columns), tl.float64)
    largest = 0.0
    chunks = tl.cdiv(k, chunk)
    for number in range(chunks):
        partial = tl.zeros((rows, columns), tl.float32)
        for start in tl.static_range(0, chunk, step):
            along = number * chunk + start + tl.arange(0, step)
            left = tl.load(a + row_at[:, None] * k + along[None, :], mask=along[None, :] < k, other=0.0)
            right = tl.load(b + column_at[None, :] * k + along[:, None], mask=along[:, None] < k, other=0.0)
            partial = tl.dot(left, right, partial)
        total += partial.to(tl.float64)
        if not again:
            of_row = tl.load(a_norm + row_at * chunks + number)
            of_column = tl.load(b_norm + column_at * chunks + number)
            largest = tl.maximum(largest, tl.max(of_row, axis=0) * tl.max(of_column, axis=0))
    total *= tl.load(alpha + expert)
    inside = row_in[:, None] & column_in[None, :]
    tl.store(out + row_at[:, None] * n + column[None, :], total.to(out.dtype.element_ty), mask=inside)
    if not again:
        tl.store(doubtful, (largest >= limit).to(tl.int32))

"""Decode NVFP4 two codes at a time, in torch alone: half the indices of a look-up code by code."""

from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor

from reference import e2m1, e4m3

_BLOCKS = 1 << 13  # at a time on a CPU, so that they stay in a core's cache
_BELOW = 1 << 15  # a pair of bytes is read as int16: one that begins above 127 is below zero


@cache
def _table() -> Tensor:
    """Return the values of each pair of bytes, the first in the low one, two float32 an int64; read-only.

    Bytes that are no codes have one too, of which nothing is said.
    """
    pair = torch.arange(1 << 16, dtype=torch.int32)
    codes = torch.stack((pair & 0xF, pair >> 8), dim=-1).clamp(max=15).to(torch.uint8)
    return e2m1.decode_e2m1(codes).view(torch.int64).flatten()


@cache
def _table_of_packed() -> Tensor:
    """Return the values of each packed byte, the low code's first, two float32 an int64; read-only."""
    byte = torch.arange(1 << 8, dtype=torch.uint8)
    return e2m1.decode_e2m1(e2m1.unpack_e2m1(byte)).view(torch.int64)


@cache
def _table_of_scales() -> Tensor:
    """Return the value of each block scale's byte, `(256,)` float32; read-only: torch converts float8 several times slower."""
    return e4m3.decode_e4m3(torch.arange(1 << 8, dtype=torch.uint8))


@lru_cache(maxsize=16)
def _scaled_table(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where each block scale's values begin, `(256,)` int32, and the values, two bfloat16 an int32; read-only.

    A pair of codes leaves four bits of each byte free, which the scale's bits take. Each pair of bytes leads into the table, if
    it is one of codes or not: torch ends a process that looks behind the end of one.
    """
    byte = torch.arange(256, dtype=torch.int32)
    begins = ((byte & 0xF) << 4 | (byte & 0xF0) << 8) + _BELOW
    code = torch.arange(16, dtype=torch.int32)
    pair = (code.view(16, 1) << 8 | code).flatten()  # the high byte's code is the slow one
    elements = e2m1.decode_e2m1(torch.stack((pair & 0xF, pair >> 8), dim=-1).to(torch.uint8))
    scales = e4m3.decode_e4m3(byte.to(torch.uint8)).view(256, 1, 1)
    values = (elements * scales).bfloat16().view(torch.int32)
    table = torch.zeros(2 * _BELOW + int(begins.max()), dtype=torch.int32)
    table[(begins.unsqueeze(-1) + pair).flatten()] = values.flatten()
    return begins.to(device), table.to(device)


def decode_blocks(
    codes: Tensor, block_scale: Tensor, dtype: torch.dtype, largest: Tensor | None = None
) -> Tensor:
    """Return codes times block scales, `(*, k)` of a floating point type; arguments as those of reference.nvfp4.decode_blocks.

    bfloat16 holds every one of them, and every other type those. A CPU multiplies float32 sooner.

    Args:
        codes: `(*, k)` uint8.
        block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
        dtype: of the result.
        largest: `(1,)` uint8, raised to the largest code, so that a caller checks many at once; None: checked here.
    """
    if largest is None:
        e2m1.check_codes(int(codes.max()))
    else:
        torch.maximum(largest, codes.max(), out=largest)
    codes = codes.contiguous()
    if codes.is_cuda:
        return _looked_up(codes, block_scale).view(codes.shape).to(dtype)
    return _multiplied(codes.view(torch.uint16).flatten(), _table(), block_scale, dtype).view(codes.shape)


def decode_packed(packed: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what `decode_blocks` does of codes that are packed, on a CPU.

    Args:
        packed: `(*, k / 2)` uint8.
        block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
        dtype: of the result.
    """
    values = _multiplied(packed.flatten(), _table_of_packed(), block_scale, dtype)
    return values.view(*packed.shape[:-1], 2 * packed.shape[-1])


def _looked_up(codes: Tensor, block_scale: Tensor) -> Tensor:
    """Return bfloat16: pair and scale are one index, so that a GPU passes over its memory twice."""
    begins, table = _scaled_table(codes.device)
    first = begins.index_select(0, block_scale.view(torch.uint8).flatten().int())
    pairs = torch.add(codes.view(torch.int16).view(len(first), 8), first.unsqueeze(-1))
    return table.index_select(0, pairs.flatten()).view(torch.bfloat16)


def _multiplied(pairs: Tensor, table: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values `(blocks, 16)` of pairs of codes, `(blocks * 8,)` indices into a table of two float32 an int64."""
    scales = _table_of_scales().index_select(0, block_scale.view(torch.uint8).flatten().int()).unsqueeze(-1)
    values = torch.empty(len(scales), 16, dtype=dtype)
    pairs = pairs.view(len(scales), 8)
    for start in range(0, len(scales), _BLOCKS):
        part = slice(start, start + _BLOCKS)
        codes = table.index_select(0, pairs[part].flatten().int()).view(torch.float32).view(-1, 16)
        if dtype == torch.float32:
            torch.mul(codes, scales[part], out=values[part])
        else:
            values[part] = codes.mul_(scales[part])
    return values

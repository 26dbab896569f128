"""Decoding two codes at a time gives the bits of decoding one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reference.e2m1 import pack_e2m1
from reference.fast import pairs
from reference.nvfp4 import _decode_by_definition, decode_packed


def _as_on_a_gpu(codes: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return pairs._looked_up(codes, block_scale).view(codes.shape).to(dtype)


def _packed(codes: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    return decode_packed(pack_e2m1(codes), block_scale, dtype)


@pytest.mark.parametrize("decode", [pairs.decode_blocks, _as_on_a_gpu, _packed], ids=["CPU", "GPU", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_pair_of_codes_under_every_byte(
    dtype: torch.dtype, decode: Callable[[Tensor, Tensor, torch.dtype], Tensor]
) -> None:
    first, second = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    codes = torch.stack((first, second), -1).flatten().to(torch.uint8).repeat(256, 1)  # 512 codes a row
    block_scale = torch.arange(256, dtype=torch.uint8).unsqueeze(-1).repeat(1, 32)
    got, wanted = (form(codes, block_scale, dtype) for form in (decode, _decode_by_definition))
    number = ~wanted.isnan()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got[number], wanted[number])
    assert torch.equal(got[number].signbit(), wanted[number].signbit())


def test_more_blocks_than_are_decoded_at_a_time() -> None:
    blocks = 2 * pairs._BLOCKS + 5
    codes = (torch.arange(blocks * 16) % 251 % 16).to(torch.uint8).view(1, -1)
    block_scale = (torch.arange(blocks) % 120).to(torch.uint8).view(1, -1)
    wanted = _decode_by_definition(codes, block_scale, torch.float64)
    for decode in (pairs.decode_blocks, _packed):
        for dtype in (torch.float32, torch.float64):
            assert torch.equal(decode(codes, block_scale, dtype).double(), wanted)


def test_packed_scales_must_fit() -> None:
    with pytest.raises(ValueError, match="block_scale must be one per 16 codes"):
        decode_packed(torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.uint8))


def test_packed_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="got 33; packed bytes need unpack_e2m1"):
        pairs.decode_blocks(
            torch.full((1, 16), 33, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8), torch.float32
        )


def test_every_pair_of_bytes_lies_in_the_table() -> None:
    """Those that are no codes as well: a GPU would end the process before the largest code is asked for."""
    pair = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8).view(-1, 16)
    for byte in (0, 255):
        block_scale = torch.full((len(pair), 1), byte, dtype=torch.uint8)
        assert pairs._looked_up(pair, block_scale).shape == (1 << 17,)

"""Decoding two codes at a time gives the bits of decoding one by one."""

from __future__ import annotations

import pytest
import torch

from reference.fast import pairs
from reference.nvfp4 import _decode_by_definition


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_pair_of_codes_under_every_byte(dtype: torch.dtype) -> None:
    first, second = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    codes = torch.stack((first, second), -1).flatten().to(torch.uint8).repeat(256, 1)  # 512 codes a row
    block_scale = torch.arange(256, dtype=torch.uint8).unsqueeze(-1).repeat(1, 32)
    got, wanted = (
        decode(codes, block_scale, dtype) for decode in (pairs.decode_blocks, _decode_by_definition)
    )
    number = ~wanted.isnan()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got[number], wanted[number])
    assert torch.equal(got[number].signbit(), wanted[number].signbit())


def test_packed_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="got 33; packed bytes need unpack_e2m1"):
        pairs.decode_blocks(
            torch.full((1, 16), 33, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8), torch.float32
        )

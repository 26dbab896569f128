"""Decode NVFP4 two codes at a time, in torch alone: half the indices of a look-up code by code."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from reference import e2m1, e4m3


@lru_cache(maxsize=16)
def _table(device: torch.device) -> Tensor:
    """Return the values of each pair of codes, the first in the low byte, as two bfloat16 in an int32; read-only."""
    pair = torch.arange(0x0F10, dtype=torch.int32)
    codes = torch.stack((pair & 0xF, pair >> 8), dim=-1).to(torch.uint8)
    return e2m1.decode_e2m1(codes).bfloat16().view(torch.int32).flatten().to(device)


def decode_blocks(codes: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes times block scales, `(*, k)` of a floating point type; arguments as those of reference.nvfp4.decode_blocks.

    bfloat16 holds every one of them, and every other type those.
    """
    e2m1.check_codes(int(codes.max()))
    pairs = codes.contiguous().view(torch.int16).flatten().int()
    values = _table(codes.device).index_select(0, pairs).view(torch.bfloat16)
    scales = e4m3.decode_e4m3(block_scale).bfloat16().unsqueeze(-1)
    return (values.view(*block_scale.shape, 16) * scales).flatten(-2).to(dtype)

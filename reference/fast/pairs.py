"""Decode NVFP4 two codes at a time, in torch alone: half the indices of a look-up code by code."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from reference import e2m1, e4m3


@lru_cache(maxsize=16)
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the values of each pair of codes, the first in the low byte, as one integer of both; read-only."""
    pair = torch.arange(0x0F10, dtype=torch.int32)
    codes = torch.stack((pair & 0xF, pair >> 8), dim=-1).clamp(max=15).to(torch.uint8)
    both = torch.int32 if dtype == torch.bfloat16 else torch.int64
    return e2m1.decode_e2m1(codes).to(dtype).view(both).flatten().to(device)


def decode_blocks(codes: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return codes times block scales, `(*, k)` of a floating point type; arguments as those of reference.nvfp4.decode_blocks.

    bfloat16 holds every one of them, and every other type those. A CPU multiplies float32 sooner.
    """
    e2m1.check_codes(int(codes.max()))
    exact = torch.bfloat16 if codes.is_cuda else torch.float32
    pairs = codes.contiguous().view(torch.int16).flatten().int()
    values = _table(codes.device, exact).index_select(0, pairs).view(exact)
    scales = e4m3.decode_e4m3(block_scale).to(exact).unsqueeze(-1)
    return values.view(*block_scale.shape, 16).mul_(scales).flatten(-2).to(dtype)

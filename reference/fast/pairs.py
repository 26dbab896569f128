"""Decode NVFP4 two codes at a time, in torch alone: half the indices of a look-up code by code."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from reference import e2m1, e4m3


@lru_cache(maxsize=16)
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the values of each pair of bytes, the first in the low one, as one integer of both; read-only.

    Bytes that are no codes have one too, of which nothing is said.
    """
    pair = torch.arange(1 << 16, dtype=torch.int32)
    codes = torch.stack((pair & 0xF, pair >> 8), dim=-1).clamp(max=15).to(torch.uint8)
    both = torch.int32 if dtype == torch.bfloat16 else torch.int64
    return e2m1.decode_e2m1(codes).to(dtype).view(both).flatten().to(device)


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
    exact = torch.bfloat16 if codes.is_cuda else torch.float32
    pairs = codes.contiguous().view(torch.uint16).flatten().int()
    values = _table(codes.device, exact).index_select(0, pairs).view(exact).view(*block_scale.shape, 16)
    scales = e4m3.decode_e4m3(block_scale).to(exact).unsqueeze(-1)
    if codes.is_cuda and dtype != exact:  # written as it is multiplied
        out = torch.empty(values.shape, dtype=dtype, device=codes.device)
        return torch.mul(values, scales, out=out).flatten(-2)
    return values.mul_(scales).flatten(-2).to(dtype)

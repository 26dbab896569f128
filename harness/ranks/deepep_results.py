"""What DeepEP's low-latency dispatch returns, as the stages around the kernels have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reference.layout import unswizzle_128x4


def received(recv: Any, transport: str, hidden: int) -> tuple[Tensor, Tensor | None]:
    """Return values and scales of harness.candidates.protocol's dispatch, `(local experts, rows, ...)`.

    Args:
        recv: first element of what dispatch returned.
        transport: of reference.routing.TRANSPORTS.
        hidden: width of the tokens.
    """
    if transport == "bf16":
        return recv.contiguous(), None
    values, scales = recv
    if transport == "fp8-ue8m0":  # four exponents in each int32
        return values.contiguous(), scales.contiguous().view(torch.uint8)
    if transport.startswith("fp8"):
        return values.contiguous(), scales.contiguous()  # scales come column by column
    # (32, 4, rm, 4, rk, l) is a view of (l, rm, rk, 32, 4, 4): tiles of 128 x 4
    tiles = scales.view(torch.uint8).permute(5, 2, 4, 0, 1, 3).contiguous()
    local, high, wide = tiles.shape[:3]
    linear = unswizzle_128x4(tiles.view(local, high * 128, wide * 4), values.shape[0], hidden // 16)
    return values.permute(2, 0, 1).contiguous(), linear.contiguous()


def sources(src_info: Tensor, layout_range: Tensor) -> Tensor:
    """Return the rank and the token of every row, `(local experts, rows, 2)` int64, -1 where a handle has none.

    Args:
        src_info: first element of a handle, `(local experts, rows)`.
        layout_range: second one, `(local experts, ranks)`: first row << 32 | rows.
    """
    src_info, layout_range = src_info.cpu().long(), layout_range.cpu().long()
    source = torch.full((*src_info.shape, 2), -1)
    row = torch.arange(src_info.shape[1])
    for rank in range(layout_range.shape[1]):
        begin, count = layout_range[:, rank] >> 32, layout_range[:, rank] & 0xFFFFFFFF
        mine = (row >= begin[:, None]) & (row < (begin + count)[:, None])
        source[..., 0][mine] = rank
        source[..., 1][mine] = src_info[mine]
    return source

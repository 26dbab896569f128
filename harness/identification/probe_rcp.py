"""rcp.approx.ftz of the GPU under test, through Triton's inline PTX."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _rcp_kernel(x_ptr, out_ptr, count, block: tl.constexpr):  # type: ignore[no-untyped-def] # Triton reads annotations
    offset = tl.program_id(0) * block + tl.arange(0, block)
    inside = offset < count
    x = tl.load(x_ptr + offset, mask=inside, other=1.0)
    y = tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )
    tl.store(out_ptr + offset, y, mask=inside)


def device_reciprocal(x: Tensor) -> Tensor:
    """Return rcp.approx.ftz of each element as the GPU computes it.

    Args:
        x: `(*shape)` float32 on any device: recorded calls lie on the CPU.

    Returns:
        `(*shape)` float32, where x is.
    """
    flat = x.to("cuda").contiguous().view(-1)
    out = torch.empty_like(flat)
    if flat.numel():
        _rcp_kernel[(triton.cdiv(flat.numel(), _BLOCK),)](flat, out, flat.numel(), block=_BLOCK)
    return out.view(x.shape).to(x.device)

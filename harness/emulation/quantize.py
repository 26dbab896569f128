"""The bits of FlashInfer's NVFP4 quantizers: their float32 operation order, with a reciprocal that the caller gives.

Independent of `reference.legal`, which says what is legal: tests run every variant of this against it.
Source: FlashInfer csrc/nv_internal/tensorrt_llm/kernels/quantization_utils.cuh:430-512.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference.e2m1 import encode_e2m1
from reference.e4m3 import decode_e4m3, encode_e4m3

Reciprocal = Callable[[Tensor], Tensor]


def simulated_rcp(x: Tensor) -> Tensor:
    """Return an approximate float32 reciprocal that is wrong by one unit as often as an H100's rcp.approx.ftz.

    On an H100 the result lies one unit below the correctly rounded one for 4.5 % of all mantissas, one above for 8.7 %,
    and is exact for powers of two and for 6. Which mantissas are off is a hash here, not the device's table.

    Args:
        x: `(*shape)` float32.

    Returns:
        `(*shape)` float32; subnormal arguments give infinity, subnormal results zero.
    """
    rounded = x.reciprocal()
    mantissa = x.abs().view(torch.int32) & 0x7FFFFF
    draw = (mantissa * 0x9E3779B1 >> 12) % 1000
    up = torch.nextafter(rounded, rounded * 2)
    down = torch.nextafter(rounded, torch.zeros_like(rounded))
    result = torch.where(draw < 45, down, torch.where(draw >= 1000 - 87, up, rounded))
    result = torch.where(
        (mantissa == 0) | (mantissa == 0x400000), rounded, result
    )  # powers of two, and 6 = 1.5 * 4
    result = torch.where(x.abs() < 2.0**-126, torch.copysign(torch.full_like(x, torch.inf), x), result)
    return torch.where(result.abs() < 2.0**-126, torch.zeros_like(x), result)


def correctly_rounded_rcp(x: Tensor) -> Tensor:
    """Return the correctly rounded float32 reciprocal."""
    return x.reciprocal()


def block_amax(blocks: Tensor) -> Tensor:
    """Return the largest magnitude of each block as __hmax2 computes it: NaN only where every element is NaN.

    Args:
        blocks: `(*, blocks, 16)` floating point.

    Returns:
        `(*, blocks)` float32.
    """
    magnitude = blocks.abs().float()
    is_nan = magnitude.isnan()
    amax = magnitude.masked_fill(is_nan, 0).amax(-1)
    return amax.masked_fill(is_nan.all(-1), torch.nan)


def fast_scale(amax: Tensor, gs: Tensor, rcp: Reciprocal) -> Tensor:
    """Return the unrounded block scale of the default (fast) mode: gs * (amax * rcp(6)), float32."""
    return gs * (amax * rcp(torch.full_like(amax, 6.0)))


def exact_scale(amax: Tensor, gs: Tensor) -> Tensor:
    """Return the unrounded block scale under FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH=1: amax * (gs * (1 / 6))."""
    return amax * (gs * torch.full_like(amax, 6.0).reciprocal())


def fast_factor(scale: Tensor, gs: Tensor, amax: Tensor, rcp: Reciprocal) -> Tensor:
    """Return the factor of the elements in fast mode: rcp(scale * rcp(gs)), 0 for a block of zeros."""
    return torch.where(amax != 0, rcp(scale * rcp(gs.expand_as(scale))), torch.zeros_like(scale))


def exact_factor(scale: Tensor, gs: Tensor, amax: Tensor) -> Tensor:
    """Return the factor of the elements in exact mode: 1 / (scale * (1 / gs)), at most the largest float32."""
    factor = (scale * gs.reciprocal()).reciprocal().clamp(max=torch.finfo(torch.float32).max)
    return torch.where(amax != 0, factor, torch.zeros_like(scale))


def quantize_kernel_order(
    x: Tensor, gs: Tensor, *, exact: bool = False, rcp: Reciprocal = simulated_rcp
) -> tuple[Tensor, Tensor]:
    """Quantize as the kernel does, bit for bit given its reciprocal.

    Args:
        x: `(rows, k)` bfloat16 or float16.
        gs: `(rows,)` float32, encode scale of each row.
        exact: exact instead of fast mode.
        rcp: the device's reciprocal, in fast mode.

    Returns:
        codes `(rows, k)` uint8 and block_scale `(rows, k / 16)` uint8.
    """
    blocks = x.reshape(x.shape[0], x.shape[1] // 16, 16)
    amax, per_row = block_amax(blocks), gs.unsqueeze(-1)
    byte = encode_e4m3(exact_scale(amax, per_row) if exact else fast_scale(amax, per_row, rcp))
    scale = decode_e4m3(byte)
    factor = exact_factor(scale, per_row, amax) if exact else fast_factor(scale, per_row, amax, rcp)
    codes = encode_e2m1(blocks.float() * factor.unsqueeze(-1), nan="as_max")
    return codes.view(x.shape), byte

"""The bits of FlashInfer's NVFP4 quantizers: their float32 operation order, with a reciprocal that the caller gives.

Independent of `reference.legal`, which says what is legal: tests run every variant of this against it. A block whose scale
rounds to zero has saturated codes here, as up to FlashInfer 0.7.2.post1; since 0.7.4 it has zeros. Both decode to zero.
Source: FlashInfer csrc/nv_internal/tensorrt_llm/kernels/quantization_utils.cuh:430-512.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference.e2m1 import MIDPOINTS, encode_e2m1
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
    return gs * (amax * rcp(torch.full((), 6.0, device=amax.device)))


def exact_scale(amax: Tensor, gs: Tensor) -> Tensor:
    """Return the unrounded block scale under FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH=1: amax * (gs * (1 / 6))."""
    return amax * (gs * torch.full_like(amax, 6.0).reciprocal())


def fast_factor(scale: Tensor, gs: Tensor, amax: Tensor, rcp: Reciprocal) -> Tensor:
    """Return the factor of the elements in fast mode: rcp(scale * rcp(gs)), 0 for a block of zeros."""
    return torch.where(amax != 0, rcp(scale * rcp(gs)), torch.zeros_like(scale))


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


def reciprocal_table(seed: int, below: int, above: int) -> Reciprocal:
    """Return another approximate reciprocal: one unit below or above the correctly rounded one for a share of the mantissas.

    Args:
        seed: of the hash that says which mantissas.
        below: of 1000 mantissas, those that lie one unit below.
        above: those that lie one unit above.

    Returns:
        float32 to float32, as `simulated_rcp`. The next float on the side where the real reciprocal lies is always within
        one unit of it; a step to the other side is taken only where that is within one unit too, as PTX documents it.
    """

    def reciprocal(x: Tensor) -> Tensor:
        rounded = x.reciprocal()
        mantissa = x.abs().view(torch.int32) & 0x7FFFFF
        draw = ((mantissa + seed * 7919) * 0x9E3779B1 >> 11) % 1000
        up = torch.nextafter(rounded, rounded * 2)
        down = torch.nextafter(rounded, torch.zeros_like(rounded))
        wanted = torch.where(draw < below, down, torch.where(draw >= 1000 - above, up, rounded))
        real = x.double().reciprocal()
        unit = (up.double() - rounded.double()).abs()
        result = torch.where((wanted.double() - real).abs() <= unit, wanted, rounded)
        result = torch.where(x.abs() < 2.0**-126, torch.copysign(torch.full_like(x, torch.inf), x), result)
        return torch.where(result.abs() < 2.0**-126, torch.zeros_like(x), result)

    return reciprocal


def quantize_fused(x: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize in the fast order with correctly rounded reciprocals and products that FMA leaves unrounded.

    A kernel that rounds to E2M1 by adding a constant, fma(x, factor, constant), rounds x * factor once instead of twice.
    This lies inside fast arithmetic with free reciprocals: docs/bounds.md, "Fused products".

    Args:
        x: `(rows, k)` bfloat16 or float16.
        gs: `(rows,)` float32.

    Returns:
        codes `(rows, k)` uint8 and block_scale `(rows, k / 16)` uint8.
    """
    blocks = x.reshape(x.shape[0], x.shape[1] // 16, 16)
    amax, per_row = block_amax(blocks), gs.unsqueeze(-1)
    byte = encode_e4m3(fast_scale(amax, per_row, correctly_rounded_rcp))
    factor = fast_factor(decode_e4m3(byte), per_row, amax, correctly_rounded_rcp)
    # 8 bits of bfloat16 times 24: exact in float64
    product = blocks.double() * factor.double().unsqueeze(-1)
    return encode_e2m1(product, nan="as_max").view(x.shape), byte


def quantize_real_with_fma(x: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize as the real numbers are rounded, in float32 alone: each midpoint is compared with the help of FMA.

    x * gs > m * scale is decided exactly: p = fl(x * gs) is compared with q = m * scale, which float32 holds; where they
    are equal the sign of fma(x, gs, -p) decides. Declares `real` arithmetic.

    Args:
        x: `(rows, k)` bfloat16 or float16.
        gs: `(rows,)` float32.

    Returns:
        codes `(rows, k)` uint8 and block_scale `(rows, k / 16)` uint8.
    """
    blocks = x.reshape(x.shape[0], x.shape[1] // 16, 16)
    amax, per_row = block_amax(blocks), gs.unsqueeze(-1)
    values = decode_e4m3(torch.arange(127, dtype=torch.uint8, device=x.device))
    halves = (values[:-1].double() + values[1:].double()).float() / 2
    byte = _above(amax, per_row, halves * 6)
    byte = byte.masked_fill(amax.isnan(), 0x7F)
    scale = decode_e4m3(byte).nan_to_num(0.0).unsqueeze(-1)
    middles = torch.tensor(MIDPOINTS, device=x.device)
    magnitude = blocks.float().abs().nan_to_num(0.0, posinf=torch.inf)
    code = _above(magnitude, per_row.unsqueeze(-1).expand_as(magnitude), scale.unsqueeze(-1) * middles)
    code = code | (blocks.signbit().to(torch.uint8) << 3)
    code = code.masked_fill(blocks.isnan(), 7)
    return code.view(x.shape), byte


def _above(x: Tensor, factor: Tensor, limits: Tensor) -> Tensor:
    """Return how many of the limits lie below x * factor, ties going to the even count; limits along the last axis."""
    product = x.nan_to_num(0.0, posinf=torch.inf) * factor
    # FMA's remainder is exact: a product of two float32 has at most 48 bits
    rest = (x.double() * factor.double() - product.double()).nan_to_num(0.0).float().unsqueeze(-1)
    product = product.unsqueeze(-1)
    equal = product == limits
    odd = torch.arange(limits.shape[-1], device=x.device) % 2 == 1
    over = (product > limits) | (equal & (rest > 0)) | (equal & (rest == 0) & odd)
    return over.sum(-1).to(torch.uint8)

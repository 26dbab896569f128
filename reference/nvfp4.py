"""NVFP4: blocks of 16 E2M1 codes, an E4M3 scale per block, a float32 scale per tensor or per expert.

    value = decode_e2m1(code) * decode_e4m3(block_scale) * global_scale_dec,    global_scale_dec = 1 / global_scale_enc

Quantization is defined on real numbers, each step rounded once, the scale first and the codes given the scale:

    block_scale = e4m3(global_scale_enc * amax / 6)            code = e2m1(x * global_scale_enc / block_scale)

Kernels follow this through float32 reciprocals and so differ from it where a value lies next to a rounding boundary:
`reference.legal` says which values are legal under which arithmetic.

Rules: NVFP4-1 (scale), NVFP4-2 (codes), NVFP4-3 (zero and underflowed blocks), NVFP4-4 (NaN and infinity).
Source: NVIDIA, "Pretraining LLMs with NVFP4", appendix on quantization; FlashInfer quantization_utils.cuh:430-512.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference import e2m1, e4m3

BLOCK = 16
SCALE_RANGE = e4m3.MAX * e2m1.MAX  # 2688: global_scale_enc = SCALE_RANGE / amax
_CHUNK = 1 << 20  # elements handled at a time, so that the float64 temporaries stay in cache
_LARGE = 1 << 20  # elements of one encode scale for which finding thresholds costs less than it saves
_LARGE_ON_CPU = 1 << 15  # the same on a CPU


@dataclass(frozen=True)
class Nvfp4Tensor:
    """A quantized tensor, logical layout.

    Attributes:
        codes: `(*, k)` uint8, one E2M1 code per element.
        block_scale: `(*, k / 16)` uint8, E4M3 bytes.
        global_scale_dec: `()` or `(experts,)` float32 or float64, the reciprocal of the encode scale.
    """

    codes: Tensor
    block_scale: Tensor
    global_scale_dec: Tensor


def global_scale_enc(amax: Tensor) -> Tensor:
    """Return the encode scale 448 * 6 / amax, and 1 where amax is zero.

    Args:
        amax: `()` or `(experts,)` floating point, not negative.

    Returns:
        float32 of the same shape.
    """
    return torch.where(amax > 0, SCALE_RANGE / amax.double(), 1.0).float()


def quantize_nvfp4(x: Tensor, global_scale_enc: Tensor) -> Nvfp4Tensor:
    """Quantize to NVFP4, each step the correctly rounded real number.

    NaN and infinity follow the hardware: a NaN element gets code 0b0111 and does not count for its block's amax; a
    block of nothing but NaN gets scale 0x7F; an infinite element makes the scale 448 and saturates. A block whose scale
    is zero (all zeros, or underflow below 2^-10) decodes to zero: its codes are the signed zeros where x is zero and
    +-6 elsewhere, as division by zero gives them.

    Args:
        x: `(*, k)` bfloat16, float16 or float32, k a multiple of 16. With a scale per expert, the first axis is it.
        global_scale_enc: `()` or `(1,)` or `(experts,)` float32, 448 * 6 / amax.

    Returns:
        codes `(*, k)`, block_scale `(*, k / 16)`, global_scale_dec `()` or `(experts,)` float32.

    Raises:
        ValueError: shapes or dtypes other than these.

    Rules: NVFP4-1, NVFP4-2, NVFP4-3, NVFP4-4.
    """
    scale = _checked_scale("quantize_nvfp4", x, global_scale_enc)
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    block_scale = torch.empty((*x.shape[:-1], x.shape[-1] // BLOCK), dtype=torch.uint8, device=x.device)
    groups = scale.numel()
    shape = groups, block_scale.numel() // max(groups, 1)
    in_groups = x.view(*shape, BLOCK), codes.view(*shape, BLOCK), block_scale.view(shape)
    if torch.compiler.is_compiling() or not _quantized_fast(*in_groups, scale):
        _quantize_by_definition(*in_groups, scale)
    return Nvfp4Tensor(codes, block_scale, global_scale_enc.double().reciprocal().float())


def _quantized_fast(x: Tensor, codes: Tensor, block_scale: Tensor, scale: Tensor) -> bool:
    """Quantize `(groups, blocks, 16)` in place, bit for bit as the definition has it; False: not done."""
    if x.device.type == "cpu":
        return _quantized_on_cpu(x, codes, block_scale, scale)
    if not x.is_cuda:
        return False
    from reference.fast import launch, thresholds

    if launch.has_kernels(x):
        launch.quantize_blocks(x, codes, block_scale, scale)
        return True
    if x.numel() < _LARGE * scale.numel() or not thresholds.has_thresholds(encode := scale.tolist()):
        return False
    group = None
    if len(encode) > 1:
        group = torch.arange(len(encode), device=x.device).repeat_interleave(x.shape[1])
    flat = x.view(-1, BLOCK), codes.view(-1, BLOCK), block_scale.view(-1)
    thresholds.quantize_blocks(*flat, encode, group)
    return True


def _quantized_on_cpu(x: Tensor, codes: Tensor, block_scale: Tensor, scale: Tensor) -> bool:
    """Quantize many elements of few encode scales by comparisons; blocks beside a NaN by the definition. False: not done."""
    if x.element_size() != 2 or x.numel() < _LARGE_ON_CPU:
        return False
    from reference.fast import columns, thresholds

    distinct, which = torch.unique(scale, return_inverse=True)
    encode = distinct.tolist()
    if x.numel() < _LARGE_ON_CPU * len(encode) or not thresholds.has_thresholds(encode):
        return False
    which = which.int().repeat_interleave(x.shape[1])
    x, codes, block_scale = x.view(-1, BLOCK), codes.view(-1, BLOCK), block_scale.view(-1)
    for part in columns.quantize_blocks(x, codes, block_scale, encode, which):
        _quantize_blocks(x[part], codes[part], block_scale[part], distinct.double()[which[part]])
    return True


def _quantize_by_definition(x: Tensor, codes: Tensor, block_scale: Tensor, scale: Tensor) -> None:
    """Quantize `(groups, blocks, 16)` in place."""
    blocks = block_scale.numel()
    x_view, codes_view, scale_view = x.view(-1, BLOCK), codes.view(-1, BLOCK), block_scale.view(-1)
    scale = scale.double()
    of_block = scale.expand(blocks) if len(scale) == 1 else scale.repeat_interleave(x.shape[1])
    at_once = _CHUNK // BLOCK if x.device.type == "cpu" and not torch.compiler.is_compiling() else blocks
    for start in range(0, blocks, max(at_once, 1)):
        part = slice(start, start + at_once)
        _quantize_blocks(x_view[part], codes_view[part], scale_view[part], of_block[part])


def _quantize_blocks(x: Tensor, codes: Tensor, block_scale: Tensor, scale: Tensor) -> None:
    """Quantize `(blocks, 16)` into codes and scales, in place; `scale` is each block's encode scale, `(blocks,)` float64.

    float64 makes each step exact: x * scale has at most 48 bits, and the one rounding of a quotient cannot reach or
    leave a midpoint, since a quotient other than the midpoint itself is at least 2^-48 away from it.
    """
    amax = x.abs().amax(-1)
    has_nan = torch.compiler.is_compiling() or bool(amax.isnan().any())  # a graph has no branch
    if has_nan:
        is_nan = x.isnan()
        amax = torch.where(is_nan.all(-1), torch.nan, x.masked_fill(is_nan, 0).abs().amax(-1))
    block_scale.copy_(e4m3.round_to_byte(amax.double() * scale / e2m1.MAX))
    divisor = e4m3.decode_to_float64(block_scale)
    magnitude = x.abs().double().mul_(scale.unsqueeze(-1)).div_(divisor.unsqueeze(-1))
    torch.bitwise_or(e2m1.round_to_code(magnitude), x.signbit().to(torch.uint8) << 3, out=codes)
    if has_nan:
        codes.masked_fill_(is_nan, e2m1.NAN_CODE)


def dequantize_nvfp4(tensor: Nvfp4Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the values of a quantized tensor.

    In float64 nothing is rounded but global_scale_dec itself; without a global scale (1) bfloat16 is exact as well.

    Args:
        tensor: codes `(*, k)`, block_scale `(*, k / 16)`, global_scale_dec `()`, `(1,)` or `(experts,)`.
        dtype: floating point type of the result.

    Returns:
        `(*, k)` of that dtype. A block with a NaN scale gives NaN.

    Raises:
        ValueError: the scales do not fit the codes.
    """
    values = decode_blocks(tensor.codes, tensor.block_scale, dtype)
    dec = _per_group(tensor.global_scale_dec, values)
    return values * dec.to(dtype)


def decode_blocks(codes: Tensor, block_scale: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return code x block scale, without the global scale: at most 6 significant bits, exact in every float dtype.

    Args:
        codes: `(*, k)` uint8 below 16.
        block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
        dtype: bfloat16, float32 or float64 (float16 holds 2688 as well).

    Returns:
        `(*, k)` of that dtype.

    Raises:
        ValueError: the scales do not fit the codes.
    """
    if codes.shape[-1] != block_scale.shape[-1] * BLOCK or codes.shape[:-1] != block_scale.shape[:-1]:
        raise ValueError(
            f"decode_blocks: block_scale must be one per {BLOCK} codes, "
            f"got codes {tuple(codes.shape)} and block_scale {tuple(block_scale.shape)}"
        )
    if codes.dtype == torch.uint8 and codes.numel() and not torch.compiler.is_compiling():
        from reference.fast import launch, pairs

        if not (codes.is_cuda and launch.has_kernels(codes)):
            return pairs.decode_blocks(codes, block_scale, dtype)
        values, largest = launch.decode_blocks(codes, block_scale, dtype)
        e2m1.check_codes(int(largest))
        return values
    return _decode_by_definition(codes, block_scale, dtype)


def decode_packed(packed: Tensor, block_scale: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return `decode_blocks` of codes that are packed two per byte, the even element in the low nibble.

    Args:
        packed: `(*, k / 2)` uint8.
        block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
        dtype: as `decode_blocks` takes it.

    Returns:
        `(*, k)` of that dtype.

    Raises:
        ValueError: another dtype, or the scales do not fit the codes.
    """
    fits = packed.shape == (*block_scale.shape[:-1], block_scale.shape[-1] * BLOCK // 2)
    if packed.device.type == "cpu" and packed.dtype == torch.uint8 and packed.numel() and fits:
        from reference.fast import pairs

        return pairs.decode_packed(packed, block_scale, dtype)
    return decode_blocks(e2m1.unpack_e2m1(packed), block_scale, dtype)


def _decode_by_definition(codes: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    blocks = e2m1.decode_e2m1(codes).to(dtype).reshape(*block_scale.shape, BLOCK)
    return (blocks * e4m3.decode_e4m3(block_scale).to(dtype).unsqueeze(-1)).flatten(-2)


def _checked_scale(name: str, x: Tensor, scale: Tensor) -> Tensor:
    if x.dtype not in {torch.bfloat16, torch.float16, torch.float32}:
        raise ValueError(f"{name}: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"{name}: the last extent of x must be a multiple of {BLOCK}, got {tuple(x.shape)}")
    if scale.dtype != torch.float32:
        raise ValueError(
            f"{name}: global_scale_enc must be float32, got {scale.dtype}: kernels read four raw bytes"
        )
    if scale.numel() != 1 and (scale.ndim != 1 or scale.shape[0] != x.shape[0]):
        raise ValueError(
            f"{name}: global_scale_enc must hold 1 or {x.shape[0]} values, got {tuple(scale.shape)}"
        )
    return scale.reshape(-1)


def _per_group(scale: Tensor, values: Tensor) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape(-1, *([1] * (values.ndim - 1)))

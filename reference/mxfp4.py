"""MXFP4: blocks of 32 E2M1 codes and an E8M0 scale per block; no global scale.

    value = decode_e2m1(code) * 2^(block_scale - 127)
    block_scale = 127 + floor(log2(amax)) - 2           code = e2m1(x / 2^(block_scale - 127))

Rules: MXFP4-1 (scale, floor), MXFP4-2 (codes), MXFP4-3 (zero and NaN blocks).
Source: OCP Microscaling Formats (MX) v1.0, 5.3 (format) and 6.3 (conversion: emax of E2M1 is 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference import e2m1, e8m0

BLOCK = 32
E2M1_EMAX = 2  # 6.0 = 1.5 * 2^2


@dataclass(frozen=True)
class Mxfp4Tensor:
    """A quantized tensor: codes `(*, k)` uint8, block_scale `(*, k / 32)` uint8, E8M0 bytes."""

    codes: Tensor
    block_scale: Tensor


def quantize_mxfp4(x: Tensor) -> Mxfp4Tensor:
    """Quantize to MXFP4 with the scale of the MX specification.

    An all-zero block gets scale 2^-127 and zero codes. A block that holds NaN or infinity gets scale 0xFF (NaN).

    Args:
        x: `(*, k)` bfloat16, float16 or float32, k a multiple of 32.

    Returns:
        codes `(*, k)` and block_scale `(*, k / 32)`, uint8.

    Raises:
        ValueError: another dtype or extent.

    Rules: MXFP4-1, MXFP4-2, MXFP4-3.
    """
    if x.dtype not in {torch.bfloat16, torch.float16, torch.float32}:
        raise ValueError(f"quantize_mxfp4: x must be bfloat16, float16 or float32, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] % BLOCK:
        raise ValueError(
            f"quantize_mxfp4: the last extent must be a multiple of {BLOCK}, got {tuple(x.shape)}"
        )
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK).double()
    amax = blocks.abs().amax(-1)
    finite = amax.isfinite()
    byte = e8m0.encode_e8m0(torch.where(finite, amax, torch.nan) * 2.0**-E2M1_EMAX)
    scale = torch.where(finite, e8m0.decode_e8m0(byte).double(), 1.0)
    codes = e2m1.encode_e2m1(
        blocks / scale.unsqueeze(-1), nan="as_max"
    )  # a power of two: the quotient is exact
    return Mxfp4Tensor(codes.reshape(x.shape), byte)


def dequantize_mxfp4(tensor: Mxfp4Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the values `(*, k)` of a quantized tensor in the given floating point type; NaN scales give NaN."""
    if tensor.codes.shape[-1] != tensor.block_scale.shape[-1] * BLOCK:
        raise ValueError(
            f"dequantize_mxfp4: block_scale must be one per {BLOCK} codes, "
            f"got codes {tuple(tensor.codes.shape)} and block_scale {tuple(tensor.block_scale.shape)}"
        )
    blocks = e2m1.decode_e2m1(tensor.codes).double().reshape(*tensor.block_scale.shape, BLOCK)
    values = blocks * e8m0.decode_e8m0(tensor.block_scale).double().unsqueeze(-1)
    return values.reshape(tensor.codes.shape).to(dtype)

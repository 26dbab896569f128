"""E8M0, the block scale of MXFP4: a biased power of two, no sign, no zero, NaN 0xFF.

Rules: E8M0-1 a byte b below 255 is 2^(b - 127); E8M0-2 encoding rounds the exponent down ("floor", OCP MX 6.3) or up
("ceil") and saturates to [2^-127, 2^127]; E8M0-3 NaN is 0xFF. Source: OCP Microscaling Formats (MX) v1.0, 5.4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

BIAS = 127
NAN_BYTE = 0xFF
MAX_BYTE = 0xFE


def encode_e8m0(x: Tensor, *, rounding: str = "floor") -> Tensor:
    """Return the byte of the power of two next to each element.

    Args:
        x: `(*shape)` float32 or float64, not negative. Zero saturates to 2^-127, infinity to 2^127, NaN gives 0xFF.
        rounding: "floor" (largest power of two not above x) or "ceil" (smallest not below).

    Returns:
        `(*shape)` uint8.

    Raises:
        ValueError: another dtype or rounding, or a negative element.
    """
    if x.dtype not in {torch.float32, torch.float64}:
        raise ValueError(f"encode_e8m0: x must be float32 or float64, got {x.dtype}")
    if rounding not in {"floor", "ceil"}:
        raise ValueError(f"encode_e8m0: rounding must be 'floor' or 'ceil', got {rounding!r}")
    if bool((x < 0).any()):
        raise ValueError("encode_e8m0: x must not be negative: E8M0 has no sign")
    mantissa, exponent = torch.frexp(x.double())  # x = mantissa * 2^exponent, mantissa in [0.5, 1)
    power = exponent.long() - 1
    if rounding == "ceil":
        power = power + (mantissa > 0.5)
    byte = (power + BIAS).clamp(0, MAX_BYTE)
    byte = torch.where(x == 0, 0, byte)
    byte = torch.where(x.isinf(), MAX_BYTE, byte)
    return torch.where(x.isnan(), NAN_BYTE, byte).to(torch.uint8)


def decode_e8m0(byte: Tensor) -> Tensor:
    """Return the value of each byte.

    Args:
        byte: `(*shape)` uint8.

    Returns:
        `(*shape)` float32; 2^-127 is a float32 subnormal, 0xFF gives NaN.

    Raises:
        ValueError: another dtype.
    """
    if byte.dtype != torch.uint8:
        raise ValueError(f"decode_e8m0: byte must be uint8, got {byte.dtype}")
    value = torch.ldexp(torch.ones_like(byte, dtype=torch.float64), byte.long() - BIAS).float()
    return torch.where(byte == NAN_BYTE, torch.nan, value)

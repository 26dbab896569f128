"""E4M3 (the "fn" variant: no infinity, NaN 0x7F and 0xFF), the block scale of NVFP4.

Rules: E4M3-1 nearest, ties to even; E4M3-2 saturation at 448, infinity included; E4M3-3 NaN stays NaN (0x7F);
E4M3-4 the sign of zero is kept. Source: OCP 8-bit Floating Point Specification (OFP8) v1.0; PTX ISA,
cvt.rn.satfinite.e4m3x2.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX = 448.0
MIN_NORMAL = 2.0**-6
NAN_BYTE = 0x7F
MAX_BYTE = 0x7E


def encode_e4m3(x: Tensor) -> Tensor:
    """Return the byte of the E4M3 value nearest to each element; ties to even, saturating at +-448, NaN to 0x7F.

    Args:
        x: `(*shape)` float32.

    Returns:
        `(*shape)` uint8.

    Raises:
        ValueError: another dtype: a cast from float64 would round twice.

    Rules: E4M3-1, E4M3-2, E4M3-3, E4M3-4.
    """
    if x.dtype != torch.float32:
        raise ValueError(f"encode_e4m3: x must be float32, got {x.dtype}")
    # Clamped first: on overflow some torch releases give NaN and some 448. clamp keeps NaN.
    byte = x.clamp(-MAX, MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(x.isnan(), torch.full_like(byte, NAN_BYTE), byte)


def round_to_byte(x: Tensor) -> Tensor:
    """Return the byte nearest to each value that is not negative, in float64, with one rounding.

    The same as `encode_e4m3` without its restriction to float32, for scales that are defined as real numbers.

    Args:
        x: `(*shape)` float64, not negative. NaN gives 0x7F.

    Returns:
        `(*shape)` uint8, at most 0x7F.
    """
    # The step between neighbours is 2^-3 of the power of two below, and 2^-9 for subnormals. x / step is exact.
    # Clamped from below first: frexp(0) has exponent 0, and subnormals share the step of the smallest normal.
    exponent = torch.frexp(x.clamp(MIN_NORMAL, MAX))[1] - 1
    steps = torch.ldexp(x.clamp(max=MAX), 3 - exponent).round()  # torch.round sends ties to even
    # 8 to 15 steps within a binade, 16 carries into the next; 0 to 7 steps are the subnormals.
    byte = steps + (exponent + 6) * 8
    return torch.where(x.isnan(), NAN_BYTE, byte).to(torch.uint8)


def decode_e4m3(byte: Tensor) -> Tensor:
    """Return the value of each byte.

    Args:
        byte: `(*shape)` uint8 or float8_e4m3fn.

    Returns:
        `(*shape)` float32; 0x7F and 0xFF give NaN.

    Raises:
        ValueError: another dtype.
    """
    if byte.dtype == torch.uint8:
        byte = byte.view(torch.float8_e4m3fn)
    if byte.dtype != torch.float8_e4m3fn:
        raise ValueError(f"decode_e4m3: byte must be uint8 or float8_e4m3fn, got {byte.dtype}")
    return byte.float()


def decode_to_float64(byte: Tensor) -> Tensor:
    """Return the value of each byte `(*shape)` uint8, in float64.

    In a graph by a table: Inductor makes one step of float8 to float32 to float64, which Triton lacks.
    """
    if not torch.compiler.is_compiling():
        return decode_e4m3(byte).double()
    values = torch.arange(256, dtype=torch.uint8, device=byte.device).view(torch.float8_e4m3fn).float()
    return values[byte.int()].double()


def take(tensor: Tensor, index: Tensor | list[int] | tuple[Tensor, ...]) -> Tensor:
    """Return `tensor[index]`: torch 2.8 does not index float8 tensors on the CPU, so their bytes are indexed.

    Args:
        tensor: `(*shape)`, any dtype.
        index: of the first dimension, or one tensor a dimension.

    Returns:
        A copy, of the tensor's dtype.
    """
    if tensor.dtype != torch.float8_e4m3fn:
        return tensor[index]
    return tensor.view(torch.uint8)[index].view(torch.float8_e4m3fn)

"""E2M1, the 4-bit float of NVFP4 and MXFP4: one sign bit, two exponent bits, one mantissa bit.

Rules: E2M1-1 nearest value, E2M1-2 ties to the even code, E2M1-3 saturation at 6, E2M1-4 the sign of zero is kept,
E2M1-5 NaN is refused or stored as +6, as the caller says. Source: OCP Microscaling Formats (MX) v1.0, Table 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # indexed by code & 0b0111
MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)  # MIDPOINTS[c] lies between codes c and c+1
MAX = MAGNITUDES[-1]
SIGN_BIT = 0b1000
NAN_CODE = 0b0111  # what cvt.rn.satfinite.e2m1x2 stores for NaN: +6, whatever the NaN's sign (PTX ISA, cvt)


def encode_e2m1(x: Tensor, *, nan: str = "refuse") -> Tensor:
    """Return the 4-bit code of the E2M1 value nearest to each element.

    A magnitude exactly between two codes goes to the even one. Magnitudes above 6, infinity included, saturate to 6.
    The sign bit is copied, so -0.0 gives 0b1000.

    Args:
        x: `(*shape)` float32 or float64 (bfloat16 and float16 widen exactly: call `.float()` first).
        nan: "refuse" raises on NaN; "as_max" stores +6, as the hardware's conversion does.

    Returns:
        `(*shape)` uint8, one code per element in bits 0-3, bits 4-7 zero; not packed.

    Raises:
        ValueError: `x` has another dtype, or holds NaN under nan="refuse", or `nan` is neither word.

    Source: OCP MX v1.0, Table 5 (values); PTX ISA, cvt.rn.satfinite.e2m1x2 (NaN).
    Rules: E2M1-1, E2M1-2, E2M1-3, E2M1-4, E2M1-5.
    """
    if x.dtype not in {torch.float32, torch.float64}:
        raise ValueError(f"encode_e2m1: x must be float32 or float64, got {x.dtype}")
    if nan not in {"refuse", "as_max"}:
        raise ValueError(f"encode_e2m1: nan must be 'refuse' or 'as_max', got {nan!r}")
    is_nan = x.isnan()
    if nan == "refuse" and (nan_count := int(is_nan.sum())) > 0:
        raise ValueError(f"encode_e2m1: x must not contain NaN, got {nan_count} of {x.numel()}")
    code = round_to_code(x.abs()) | (x.signbit().to(torch.uint8) << 3)
    return code.masked_fill_(is_nan, NAN_CODE) if nan == "as_max" else code


def round_to_code(magnitude: Tensor) -> Tensor:
    """Return the code (0 to 7) of each magnitude: the number of midpoints that it lies past.

    Midpoints above an odd code are passed at equality, which sends every tie to the even code.

    Args:
        magnitude: `(*shape)` floating point, not negative. NaN gives 0.

    Returns:
        `(*shape)` uint8.
    """
    code = (magnitude > MIDPOINTS[0]).to(torch.uint8)
    for below, midpoint in enumerate(MIDPOINTS[1:], start=1):
        code += magnitude >= midpoint if below % 2 == 1 else magnitude > midpoint
    return code


def decode_e2m1(codes: Tensor) -> Tensor:
    """Return the value of each code.

    Args:
        codes: `(*shape)` uint8 below 16.

    Returns:
        `(*shape)` float32; 0b1000 gives -0.0.

    Raises:
        ValueError: another dtype, or a value above 15 (packed bytes, probably: call `unpack_e2m1` first).
    """
    if codes.dtype != torch.uint8:
        raise ValueError(f"decode_e2m1: codes must be uint8, got {codes.dtype}")
    if codes.numel() and not torch.compiler.is_compiling():  # a graph cannot raise
        check_codes(int(codes.max()))
    values = torch.tensor([*MAGNITUDES, *(-v for v in MAGNITUDES)], device=codes.device)
    # index_select is several times faster than indexing with a tensor
    return values.index_select(0, codes.flatten().int()).view(codes.shape)


def check_codes(largest: int) -> None:
    """Raise ValueError if the largest of some codes is none."""
    if largest > 15:
        raise ValueError(f"decode_e2m1: codes must be below 16, got {largest}; packed bytes need unpack_e2m1")


def pack_e2m1(codes: Tensor) -> Tensor:
    """Pack two codes per byte, the even element in the low nibble.

    Args:
        codes: `(*, k)` uint8 below 16, k even.

    Returns:
        `(*, k / 2)` uint8, contiguous.

    Raises:
        ValueError: another dtype, or odd k.
    """
    if codes.dtype != torch.uint8:
        raise ValueError(f"pack_e2m1: codes must be uint8, got {codes.dtype}")
    if codes.shape[-1] % 2:
        raise ValueError(f"pack_e2m1: the last extent must be even, got {tuple(codes.shape)}")
    # One 16-bit lane holds both codes (little endian): low byte even element, high byte odd element.
    both = codes.contiguous().view(torch.int16)
    return ((both | (both >> 4)) & 0xFF).to(torch.uint8)


def unpack_e2m1(packed: Tensor) -> Tensor:
    """Return one code per element from packed bytes.

    Args:
        packed: `(*, k / 2)` uint8.

    Returns:
        `(*, k)` uint8 below 16, contiguous.

    Raises:
        ValueError: another dtype.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f"unpack_e2m1: packed must be uint8, got {packed.dtype}")
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)

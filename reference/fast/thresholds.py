"""NVFP4 quantization as comparisons of integers.

Rounding never decreases, so which E4M3 byte a block gets is the number of thresholds that its largest magnitude reaches, and
a code is the number of thresholds of that byte that the element reaches. The bits of a magnitude, read as an integer, are
in the order of the magnitudes, with infinity and then NaN at the end. There are 127 thresholds for bytes and 7 for the codes
under each byte: they are found with the definition itself, on the few values next to where real numbers would have them,
once for each encode scale. What is left for each element is seven comparisons of 16-bit integers.

Rules: NVFP4-1, NVFP4-2, NVFP4-3, NVFP4-4. The definition: reference.nvfp4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from reference import e2m1, e4m3

BYTES = 128  # E4M3 bytes without their sign
_NEAR = (
    2  # values on each side of a real threshold, rounded to the input's type, that are tried: one would do
)


def has_thresholds(scale: Sequence[float]) -> bool:
    """Return whether quantizing with these encode scales never decreases: they are finite and above zero."""
    return all(0 < each < torch.inf for each in scale)


def bits_of(x: Tensor) -> Tensor:
    """Return the bits of floating point numbers without their sign, as int16 or int32 of the same shape."""
    if x.element_size() == 2:
        return x.view(torch.int16) & 0x7FFF
    return x.view(torch.int32) & 0x7FFFFFFF


def infinity_bits(dtype: torch.dtype) -> int:
    """Return the bits of infinity; those of NaN are larger."""
    return {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}[dtype]


def byte_thresholds(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bits of the smallest largest-magnitude that gives each byte or a larger one.

    Args:
        scale: `(groups,)` float64, encode scales as `has_thresholds` wants them.
        dtype: of the elements.

    Returns:
        `(groups, 127)` int16 or int32: of the bytes 1 to 127, the last of which is NaN.
    """
    byte = torch.arange(1, BYTES, device=scale.device)
    value = e4m3.decode_e4m3(torch.arange(BYTES - 1, dtype=torch.uint8, device=scale.device)).double()
    middle = torch.cat([(value[1:] + value[:-1]) / 2, value.new_full((1,), torch.inf)])
    per_group = scale.unsqueeze(-1)

    def reaches(magnitude: Tensor) -> Tensor:
        exact = magnitude.double() * per_group.unsqueeze(-1) / e2m1.MAX
        return e4m3.round_to_byte(exact) >= byte.unsqueeze(-1)

    return _first(reaches, middle * e2m1.MAX / per_group, dtype)


def code_thresholds(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bits of the smallest magnitude that gives each code or a larger one, under each block scale.

    Args:
        scale: `(groups,)` float64, encode scales as `has_thresholds` wants them.
        dtype: of the elements.

    Returns:
        `(groups, 128, 7)` int16 or int32: of the codes 1 to 7 under each byte. All magnitudes above zero reach those under
        zero, and nothing but NaN those under the byte NaN.
    """
    divisor = e4m3.decode_e4m3(torch.arange(BYTES, dtype=torch.uint8, device=scale.device)).double()
    divisor = divisor.view(1, BYTES, 1)
    code = torch.arange(1, 8, device=scale.device).unsqueeze(-1)
    middle = torch.tensor(e2m1.MIDPOINTS, dtype=torch.float64, device=scale.device)
    per_group = scale.view(-1, 1, 1)

    def reaches(magnitude: Tensor) -> Tensor:
        return (
            e2m1.round_to_code(magnitude.double() * per_group.unsqueeze(-1) / divisor.unsqueeze(-1)) >= code
        )

    return _first(reaches, middle * divisor / per_group, dtype)


def _first(reaches: Callable[[Tensor], Tensor], near: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bits of the first magnitude that reaches something.

    Args:
        reaches: magnitudes `(*, n)` of the type to which of them do: none before one that does not.
        near: `(*)` float64, where the first is within rounding; NaN where none is.
        dtype: of the magnitudes.
    """
    middle = bits_of(near.nan_to_num(torch.inf, posinf=torch.inf).to(dtype)).clamp_(min=_NEAR)
    around = torch.arange(-_NEAR, _NEAR + 1, dtype=middle.dtype, device=middle.device)
    tried = middle.unsqueeze(-1) + around
    short = ~reaches(tried.view(dtype)) & (tried <= infinity_bits(dtype))  # NaN reaches everything
    return (tried[..., 0] + short.sum(-1)).to(middle.dtype)


@lru_cache(maxsize=64)
def thresholds_of(
    scale: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the thresholds of both kinds; treat them as read-only."""
    of_groups = torch.tensor(scale, dtype=torch.float64, device=device)
    return byte_thresholds(of_groups, dtype), code_thresholds(of_groups, dtype)


def _largest(bits: Tensor) -> Tensor:
    """Return the largest of the last axis, 16: by halves, which for so few is several times faster than a reduction."""
    while bits.shape[-1] > 1:
        half = bits.shape[-1] // 2
        bits = torch.maximum(bits[..., :half], bits[..., half:])
    return bits.squeeze(-1)


def quantize_blocks(x: Tensor, codes: Tensor, block_scale: Tensor, scale: Sequence[float]) -> None:
    """Quantize blocks of one encode scale into codes and scales, in place.

    Args:
        x: `(groups, blocks, 16)` bfloat16, float16 or float32.
        codes: `(groups, blocks, 16)` uint8.
        block_scale: `(groups, blocks)` uint8.
        scale: of each group, encode scales as `has_thresholds` wants them.
    """
    bits, infinity = bits_of(x), infinity_bits(x.dtype)
    of_byte, of_code = thresholds_of(tuple(scale), x.dtype, x.device)
    largest = _largest(bits)
    nan = bits > infinity if bool((largest > infinity).any()) else None
    if nan is not None:  # NaN does not count, unless there is nothing else
        largest = torch.where(nan.all(-1), largest, _largest(bits.masked_fill(nan, 0)))
    byte = torch.searchsorted(of_byte, largest, right=True, out_int32=True)
    block_scale.copy_(byte)
    byte += torch.arange(0, BYTES * len(scale), BYTES, dtype=torch.int32, device=x.device).unsqueeze(-1)
    first = of_code.view(-1, 7).index_select(0, byte.view(-1)).view(*byte.shape, 7)
    codes.copy_(torch.searchsorted(first, bits, right=True, out_int32=True))
    codes.add_(x.signbit().view(torch.uint8), alpha=e2m1.SIGN_BIT)
    if nan is not None:
        codes.masked_fill_(nan, e2m1.NAN_CODE)

"""FP8 tokens as DeepEP's low-latency dispatch sends them: E4M3 values, one float32 scale per 128 channels.

    value = decode_e4m3(byte) * scale,    scale = max(amax, 1e-4) / 448,    byte = e4m3(x / scale), saturating

With `round_scale` the scale is the smallest power of two that is not below that quotient; UE8M0 stores its exponent + 127.

Rules: FP8-1 (scale), FP8-2 (values given the scale).
Source: DeepEP csrc/kernels, calculate_fp8_scales and internode_ll.cu, dispatch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference import e4m3, e8m0

CHANNELS = 128  # channels that share a scale
AMAX_FLOOR = 1e-4

# Kernels compute the scale as amax * float32(1 / 448) and the values as x * (448 / amax), in float32. The stored scale is
# then off amax / 448 by two roundings (2^-23), and a value's argument by those, an approximate division (2 units, 2^-22)
# and a product (2^-24), less than 2^-21 in all.
SCALE_FREEDOM = 2.0**-23
VALUE_FREEDOM = 2.0**-21


def _channel_groups(name: str, x: Tensor) -> Tensor:
    if x.ndim == 0 or x.shape[-1] % CHANNELS:
        raise ValueError(f"{name}: the last extent must be a multiple of {CHANNELS}, got {tuple(x.shape)}")
    return x.reshape(*x.shape[:-1], x.shape[-1] // CHANNELS, CHANNELS)


def _nearest_byte(x: Tensor) -> Tensor:
    """Return the E4M3 byte nearest to each float64 value, one rounding, saturating."""
    return e4m3.round_to_byte(x.abs()) | (x.signbit().to(torch.uint8) << 7)


def amax_of_channels(x: Tensor) -> Tensor:
    """Return max(amax, 1e-4) of every 128 channels, `(*, k)` to `(*, k / 128)` float64. The floor is float32's 1e-4."""
    floor = float(torch.tensor(AMAX_FLOOR, dtype=torch.float32))
    return _channel_groups("amax_of_channels", x).double().abs().amax(-1).clamp(min=floor)


def quantize_fp8_tokens(x: Tensor, *, round_scale: bool = False) -> tuple[Tensor, Tensor]:
    """Quantize tokens to FP8, each step the correctly rounded real number.

    Args:
        x: `(*, k)` bfloat16 or float32, finite, k a multiple of 128.
        round_scale: make the scales powers of two, rounded up (DeepEP's option of that name).

    Returns:
        `(*, k)` float8_e4m3fn and the scales to multiply with, `(*, k / 128)` float32.

    Raises:
        ValueError: k is not a multiple of 128.

    Rules: FP8-1, FP8-2.
    """
    groups = _channel_groups("quantize_fp8_tokens", x)
    scale = (amax_of_channels(x) / e4m3.MAX).float()
    if round_scale:
        scale = _power_of_two(scale)
    values = _nearest_byte(groups.double() / scale.double().unsqueeze(-1))
    return values.view(torch.float8_e4m3fn).reshape(x.shape), scale


def dequantize_fp8_tokens(values: Tensor, scale: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return value * scale, one rounding to `dtype`.

    Args:
        values: `(*, k)` float8_e4m3fn.
        scale: `(*, k / 128)` float32.
        dtype: floating point type of the result.

    Returns:
        `(*, k)` of that dtype.

    Raises:
        ValueError: the scales do not fit the values.
    """
    groups = _channel_groups("dequantize_fp8_tokens", values.view(torch.uint8))
    if groups.shape[:-1] != scale.shape:
        raise ValueError(
            f"dequantize_fp8_tokens: scale must be one per {CHANNELS} channels, "
            f"got values {tuple(values.shape)} and scale {tuple(scale.shape)}"
        )
    decoded = e4m3.decode_e4m3(groups).double() * scale.double().unsqueeze(-1)
    return decoded.reshape(values.shape).to(dtype)


def legal_scales(x: Tensor, *, round_scale: bool = False) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest legal scale of every 128 channels.

    Args:
        x: `(*, k)` finite, what was quantized.
        round_scale: the scales are powers of two: one is legal, or two where amax / 448 lies within 2^-23 of a power.

    Returns:
        Two `(*, k / 128)` float64 tensors.

    Rule: FP8-1.
    """
    wanted = amax_of_channels(x) / e4m3.MAX
    low, high = wanted * (1 - SCALE_FREEDOM), wanted * (1 + SCALE_FREEDOM)
    return (_power_of_two(low), _power_of_two(high)) if round_scale else (low, high)


def _power_of_two(x: Tensor) -> Tensor:
    """Return the smallest power of two that is not below each positive value, in its dtype."""
    return e8m0.decode_e8m0(e8m0.encode_e8m0(x, rounding="ceil")).to(x.dtype)


def legal_fp8_values(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest legal value of each element, given the scale that was stored.

    Args:
        x: `(*, k)` finite floating point, what was quantized.
        scale: `(*, k / 128)` float32, positive, the stored scales.

    Returns:
        Two `(*, k)` float64 tensors of decoded E4M3 values; they differ where `x / scale` lies within 2^-21 of a midpoint.

    Rule: FP8-2.
    """
    real = _channel_groups("legal_fp8_values", x).double() / scale.double().unsqueeze(-1)
    near, far = real * (1 - VALUE_FREEDOM), real * (1 + VALUE_FREEDOM)
    ends = [e4m3.decode_e4m3(_nearest_byte(end)).double() for end in (near, far)]
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    return low.reshape(x.shape), high.reshape(x.shape)

"""E8M0 against ml_dtypes.float8_e8m0fnu, which rounds to nearest, and against the definition."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch

from reference.e8m0 import MAX_BYTE, NAN_BYTE, decode_e8m0, encode_e8m0

BYTES = torch.arange(256, dtype=torch.uint8)


def test_decode_equals_ml_dtypes_on_every_byte() -> None:
    """E8M0-1, E8M0-3: 2^-127, a float32 subnormal, and NaN included."""
    theirs = torch.from_numpy(BYTES.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    ours = decode_e8m0(BYTES)
    assert torch.equal(ours[:NAN_BYTE], theirs[:NAN_BYTE])
    assert ours[:2].tolist() == [2.0**-127, 2.0**-126]
    assert ours[NAN_BYTE].isnan()


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_encode_brings_every_byte_back(rounding: str) -> None:
    """E8M0-2: powers of two are their own rounding; float32 subnormals included. ml_dtypes agrees."""
    values = decode_e8m0(BYTES)
    assert torch.equal(encode_e8m0(values, rounding=rounding), BYTES)
    theirs = values[:NAN_BYTE].double().numpy().astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    assert torch.equal(encode_e8m0(values[:NAN_BYTE], rounding=rounding), torch.from_numpy(theirs.copy()))


def test_values_between_two_powers_go_down_or_up() -> None:
    """E8M0-2: every power of two with the float32 below and above it, against integer arithmetic on the exponent."""
    powers = torch.exp2(torch.arange(-126, 128, dtype=torch.float64)).float()
    below, above = (torch.nextafter(powers, torch.full((), end)) for end in (0.0, torch.inf))
    for points in (below, above, powers * 1.4):
        x = points[points.isfinite() & (points >= 2.0**-127)]
        down = [math.frexp(v)[1] - 1 + 127 for v in x.tolist()]
        up = [min(byte + 1, MAX_BYTE) for byte in down]
        assert encode_e8m0(x).tolist() == down
        assert encode_e8m0(x, rounding="ceil").tolist() == up
        assert encode_e8m0(x.double()).tolist() == down
        # ml_dtypes rounds to the nearest: one of the two
        near = x.double().numpy().astype(ml_dtypes.float8_e8m0fnu).view(np.uint8).tolist()
        assert all(
            n in pair for n, pair in zip(near, zip(down, [b + 1 for b in down], strict=True), strict=True)
        )


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
def test_what_has_no_power_of_two_saturates(rounding: str) -> None:
    """E8M0-2, E8M0-3: zero, what is smaller than 2^-127, infinity, NaN."""
    x = torch.tensor([0.0, 2.0**-149, 2.0**-128, torch.inf, torch.nan])
    assert encode_e8m0(x, rounding=rounding).tolist() == [0, 0, 0, MAX_BYTE, NAN_BYTE]
    huge = torch.tensor([2.0**127, 1.5 * 2.0**127, 2.0**200], dtype=torch.float64)
    assert encode_e8m0(huge, rounding=rounding).tolist() == [MAX_BYTE] * 3


def test_wrong_arguments_raise() -> None:
    """E8M0-2: dtype, rounding, sign."""
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.bfloat16"):
        encode_e8m0(torch.ones(1, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="'floor' or 'ceil', got 'even'"):
        encode_e8m0(torch.ones(1), rounding="even")
    with pytest.raises(ValueError, match="must not be negative"):
        encode_e8m0(torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="must be uint8"):
        decode_e8m0(torch.ones(1))
    assert encode_e8m0(torch.zeros(0)).shape == (0,)

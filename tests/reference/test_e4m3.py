"""E4M3 against ml_dtypes.float8_e4m3fn and against fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from reference.e4m3 import MAX, MAX_BYTE, NAN_BYTE, decode_e4m3, encode_e4m3, round_to_byte

BYTES = torch.arange(256, dtype=torch.uint8)


def magnitudes() -> torch.Tensor:
    """Return the 127 finite values that are not negative, by fractions: byte b to its value, float64."""
    values = []
    for byte in range(MAX_BYTE + 1):
        exponent, mantissa = byte >> 3, byte & 7
        value = (
            Fraction(mantissa, 512)
            if exponent == 0
            else Fraction(8 + mantissa, 8) * Fraction(2) ** (exponent - 7)
        )
        values.append(float(value))
    return torch.tensor(values, dtype=torch.float64)


def test_decode_equals_ml_dtypes_on_every_byte() -> None:
    """E4M3-1, E4M3-4: values, signs of zero, NaN at 0x7F and 0xFF; from uint8 and from float8_e4m3fn."""
    theirs = torch.from_numpy(BYTES.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    for ours in (decode_e4m3(BYTES), decode_e4m3(BYTES.view(torch.float8_e4m3fn))):
        assert torch.equal(ours.view(torch.int32)[~ours.isnan()], theirs.view(torch.int32)[~theirs.isnan()])
        assert ours.isnan().nonzero().flatten().tolist() == [0x7F, 0xFF]
    assert torch.equal(decode_e4m3(BYTES[: MAX_BYTE + 1]).double(), magnitudes())


def test_encode_brings_every_byte_back() -> None:
    """E4M3-1, E4M3-3: the second NaN pattern becomes the first."""
    expected = BYTES.clone()
    expected[0xFF] = NAN_BYTE
    assert torch.equal(encode_e4m3(decode_e4m3(BYTES)), expected)


def test_encode_equals_ml_dtypes_at_every_midpoint_and_its_neighbours() -> None:
    """E4M3-1, E4M3-2: 126 midpoints, each with the float32 below and above, and every bfloat16 up to the largest value.

    ml_dtypes turns what lies past the last midpoint into NaN; saturation is checked on its own.
    """
    values = magnitudes()
    middle = ((values[:-1] + values[1:]) / 2).float()
    below, above = torch.nextafter(middle, torch.zeros(())), torch.nextafter(middle, torch.full((), 500.0))
    bfloat16 = torch.arange(0x7F80, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    x = torch.cat((below, middle, above, values.float(), bfloat16[bfloat16 <= MAX]))
    x = torch.cat((x, -x))
    theirs = torch.from_numpy(x.numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8).copy())
    assert torch.equal(encode_e4m3(x), theirs)
    lower = torch.arange(MAX_BYTE, dtype=torch.uint8)
    assert torch.equal(encode_e4m3(below), lower)
    assert torch.equal(encode_e4m3(middle), lower + lower % 2)
    assert torch.equal(encode_e4m3(above), lower + 1)


def test_what_exceeds_the_range_saturates_and_nan_stays_nan() -> None:
    """E4M3-2, E4M3-3: 464 is the midpoint to the value that NaN took the place of; infinity saturates too."""
    x = torch.tensor([448.0, 449.0, 463.9, 464.0, 465.0, 480.0, 3e38, torch.inf])
    assert encode_e4m3(x).tolist() == [MAX_BYTE] * 8
    assert encode_e4m3(-x).tolist() == [MAX_BYTE | 0x80] * 8
    assert encode_e4m3(torch.tensor([torch.nan, -torch.nan])).tolist() == [NAN_BYTE] * 2
    assert round_to_byte(x.double()).tolist() == [MAX_BYTE] * 8
    assert round_to_byte(torch.tensor([torch.nan], dtype=torch.float64)).tolist() == [NAN_BYTE]


def test_round_to_byte_equals_encode_wherever_both_apply() -> None:
    """E4M3-1: every bfloat16 that is not negative, every value, midpoint and float32 neighbour."""
    values = magnitudes()
    middle = ((values[:-1] + values[1:]) / 2).float()
    points = torch.cat((values.float(), middle))
    points = torch.cat(
        (points, torch.nextafter(points, torch.zeros(())), torch.nextafter(points, torch.full((), 500.0)))
    )
    bfloat16 = torch.arange(0x7F80 + 1, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    x = torch.cat((points, bfloat16))
    assert torch.equal(round_to_byte(x.double()), encode_e4m3(x))


def test_round_to_byte_rounds_once_next_to_a_midpoint() -> None:
    """E4M3-1: float64 values whose float32 rounding is the midpoint itself go to the side that they lie on."""
    values = magnitudes()
    middle = (values[:-1] + values[1:]) / 2
    lower = torch.arange(MAX_BYTE, dtype=torch.uint8)
    for factor in (2.0**-52, 2.0**-40, 2.0**-26):
        assert torch.equal(round_to_byte(middle * (1 - factor)), lower)
        assert torch.equal(round_to_byte(middle * (1 + factor)), lower + 1)
    assert torch.equal(
        (middle * (1 + 2.0**-40)).float(), middle.float()
    )  # a cast would have lost the difference
    assert torch.equal(round_to_byte(middle), lower + lower % 2)


def test_round_to_byte_is_the_nearest_value_by_fractions() -> None:
    """E4M3-1: random float64 values over the whole range against exact rational distances."""
    generator = torch.Generator().manual_seed(5)
    x = torch.exp2(torch.rand(400, generator=generator, dtype=torch.float64) * 21 - 12)
    table = [Fraction(v) for v in magnitudes().tolist()]
    for value, byte in zip(x.tolist(), round_to_byte(x).tolist(), strict=True):
        distances = [abs(Fraction(value) - v) for v in table]
        assert distances[byte] == min(distances)


def test_wrong_dtypes_raise() -> None:
    """E4M3-1: float64 would be rounded twice; a bfloat16 is no byte."""
    with pytest.raises(ValueError, match=r"must be float32, got torch\.float64"):
        encode_e4m3(torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"uint8 or float8_e4m3fn, got torch\.bfloat16"):
        decode_e4m3(torch.zeros(2, dtype=torch.bfloat16))
    assert encode_e4m3(torch.zeros(0)).shape == (0,)

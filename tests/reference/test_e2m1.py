"""E2M1 against ml_dtypes.float4_e2m1fn, which is another implementation of the same format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from reference.e2m1 import MIDPOINTS, decode_e2m1, encode_e2m1, pack_e2m1, unpack_e2m1


def every_bfloat16() -> torch.Tensor:
    """Return all 65,536 bfloat16 values as float32."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()


def ml_codes(x: torch.Tensor) -> torch.Tensor:
    codes = x.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return torch.from_numpy(codes.copy()) & 0xF


def test_encode_equals_ml_dtypes_on_every_bfloat16_but_nan() -> None:
    """E2M1-1, E2M1-2, E2M1-3, E2M1-4: 65,536 values less the NaN patterns, signed zeros and infinities included."""
    x = every_bfloat16()
    x = x[~x.isnan()]
    assert len(x) == 65_536 - 2 * 127
    assert torch.equal(encode_e2m1(x), ml_codes(x))
    assert torch.equal(encode_e2m1(x.double()), ml_codes(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_midpoints_go_to_the_even_code_and_their_neighbours_to_the_nearer(dtype: torch.dtype) -> None:
    """E2M1-1, E2M1-2: each midpoint, the value just below and just above, both signs."""
    middle = torch.tensor(MIDPOINTS, dtype=dtype)
    below = torch.nextafter(middle, torch.zeros_like(middle))
    above = torch.nextafter(middle, torch.full_like(middle, 8))
    lower = torch.arange(7, dtype=torch.uint8)
    even = lower + lower % 2
    for sign, bit in ((1, 0), (-1, 8)):
        assert torch.equal(encode_e2m1(sign * below), lower | bit)
        assert torch.equal(encode_e2m1(sign * middle), even | bit)
        assert torch.equal(encode_e2m1(sign * above), lower + 1 | bit)
    if dtype == torch.float32:
        points = torch.cat((below, middle, above))
        points = torch.cat((points, -points))
        assert torch.equal(encode_e2m1(points), ml_codes(points))


def test_nan_is_refused_or_becomes_plus_six() -> None:
    """E2M1-5: whatever the NaN's sign; nothing else changes."""
    nan = torch.tensor([0x7FC00000, -0x400000, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert nan.isnan().all()
    x = torch.cat((nan, torch.tensor([-0.0, -6.0])))
    assert encode_e2m1(x, nan="as_max").tolist() == [7, 7, 7, 8, 15]
    with pytest.raises(ValueError, match="must not contain NaN, got 3 of 5"):
        encode_e2m1(x)


def test_decode_gives_the_sixteen_values_of_ml_dtypes() -> None:
    """E2M1-1: values and signs, and encode brings every code back."""
    codes = torch.arange(16, dtype=torch.uint8)
    theirs = torch.from_numpy(codes.numpy().view(ml_dtypes.float4_e2m1fn).astype(np.float32))
    ours = decode_e2m1(codes)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours.signbit(), theirs.signbit())
    assert torch.equal(encode_e2m1(ours), codes)


def test_every_pair_of_codes_packs_into_its_own_byte_and_back() -> None:
    """E2M1: the even element lies in the low nibble."""
    low, high = torch.meshgrid(*[torch.arange(16, dtype=torch.uint8)] * 2, indexing="ij")
    codes = torch.stack((low, high), -1)
    packed = pack_e2m1(codes)
    assert torch.equal(packed.squeeze(-1), low + 16 * high)
    assert torch.equal(unpack_e2m1(packed), codes)


def test_packing_reads_elements_and_not_memory() -> None:
    """E2M1: a strided, offset or non-contiguous view packs the same as its copy."""
    codes = torch.randint(0, 16, (6, 10, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for view in (
        codes.transpose(0, 1),
        codes[..., 1:7],
        codes[:, ::3],
        codes.permute(2, 1, 0)[..., :6],
        codes[..., ::2],
    ):
        expected = view[..., 0::2] | view[..., 1::2] << 4
        assert torch.equal(pack_e2m1(view), expected)
        assert torch.equal(unpack_e2m1(pack_e2m1(view)), view)


def test_empty_tensors_are_encoded_packed_and_decoded() -> None:
    """E2M1: an expert without rows is an ordinary input."""
    codes = encode_e2m1(torch.empty(0, 16))
    assert codes.shape == (0, 16)
    assert pack_e2m1(codes).shape == (0, 8)
    assert decode_e2m1(unpack_e2m1(pack_e2m1(codes))).shape == (0, 16)


def test_wrong_arguments_raise_with_what_was_given() -> None:
    """E2M1: dtype, nan policy, packed bytes taken for codes, odd extent."""
    with pytest.raises(ValueError, match=r"float32 or float64, got torch\.bfloat16"):
        encode_e2m1(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="'refuse' or 'as_max', got 'zero'"):
        encode_e2m1(torch.zeros(2), nan="zero")
    with pytest.raises(ValueError, match="below 16, got 16; packed bytes need unpack_e2m1"):
        decode_e2m1(torch.tensor([16], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"must be uint8, got torch.int32"):
        decode_e2m1(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match="must be even"):
        pack_e2m1(torch.zeros(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be uint8"):
        pack_e2m1(torch.zeros(4))
    with pytest.raises(ValueError, match="must be uint8"):
        unpack_e2m1(torch.zeros(4))
    assert encode_e2m1(torch.zeros(2), nan="as_max").tolist() == [0, 0]

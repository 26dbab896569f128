"""MXFP4 by definition: scale by the exponent of amax, codes by exact quotients."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from reference import e2m1
from reference.mxfp4 import Mxfp4Tensor, dequantize_mxfp4, quantize_mxfp4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_quantize_equals_fractions_and_ml_dtypes(dtype: torch.dtype) -> None:
    """MXFP4-1, MXFP4-2: the scale by fractions, the codes by ml_dtypes on the exact quotient."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 32, generator=generator) * torch.exp2(
        torch.randint(-10, 10, (64, 1), generator=generator)
    )
    x[0] = torch.tensor([6.0, *e2m1.MIDPOINTS, *(-m for m in e2m1.MIDPOINTS), -0.0] * 2)
    x[1] = torch.linspace(4, 7.9, 32)
    x = x.to(dtype)
    got = quantize_mxfp4(x)
    for row in range(len(x)):
        amax = max(abs(Fraction(v)) for v in x[row].double().tolist())
        power = int(got.block_scale[row, 0]) - 127 + 2
        assert Fraction(2) ** power <= amax < Fraction(2) ** (power + 1)
    quotient = x.double() / torch.exp2(got.block_scale.double() - 127)
    theirs = quotient.float().numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 0xF
    assert torch.equal(got.codes, torch.from_numpy(theirs))


def test_blocks_without_an_ordinary_amax() -> None:
    """MXFP4-3: zeros, NaN, infinity, float32 subnormals."""
    x = torch.ones(5, 32)
    x[0], x[1, 3], x[2, 3], x[3] = 0.0, torch.nan, torch.inf, 2.0**-149
    x[4, 0] = -0.0
    got = quantize_mxfp4(x)
    assert got.block_scale.flatten().tolist() == [0, 255, 255, 0, 125]
    assert got.codes[0].tolist() == [0] * 32
    values = dequantize_mxfp4(got)
    assert values[1:3].isnan().all()
    assert (values[3] == 0).all()  # 2^-149 is far below half of 0.5 * 2^-127
    assert values[4, 1:].tolist() == [1.0] * 31
    assert got.codes[4, 0] == 8


def test_dequantize_returns_code_times_power() -> None:
    """MXFP4-2: any shape before the last axis, any floating point type."""
    codes = torch.arange(32, dtype=torch.uint8).remainder(16).expand(2, 3, 32).contiguous()
    block_scale = torch.tensor([127, 128, 125], dtype=torch.uint8).expand(2, 3).unsqueeze(-1)
    values = dequantize_mxfp4(Mxfp4Tensor(codes, block_scale), torch.float32)
    assert values.dtype == torch.float32
    assert torch.equal(values[0, 1], e2m1.decode_e2m1(codes[0, 1]) * 2)
    assert torch.equal(values[1, 2], e2m1.decode_e2m1(codes[1, 2]) / 4)


def test_wrong_arguments_raise() -> None:
    """MXFP4: dtype, extent, scales that do not fit."""
    with pytest.raises(ValueError, match="bfloat16, float16 or float32"):
        quantize_mxfp4(torch.zeros(2, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"multiple of 32, got \(2, 16\)"):
        quantize_mxfp4(torch.zeros(2, 16))
    with pytest.raises(ValueError, match="one per 32 codes"):
        dequantize_mxfp4(
            Mxfp4Tensor(torch.zeros(2, 64, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8))
        )
    assert quantize_mxfp4(torch.zeros(0, 32)).codes.shape == (0, 32)

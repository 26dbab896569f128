"""NVFP4 by definition: against a scalar quantizer in fractions, and its policy for what is not a number."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from reference import e2m1, e4m3
from reference.nvfp4 import (
    SCALE_RANGE,
    Nvfp4Tensor,
    decode_blocks,
    dequantize_nvfp4,
    global_scale_enc,
    quantize_nvfp4,
)

E2M1_VALUES = [Fraction(v) for v in e2m1.MAGNITUDES]
E4M3_VALUES = [Fraction(v) for v in e4m3.decode_e4m3(torch.arange(127, dtype=torch.uint8)).tolist()]
ONE = torch.ones(())


def nearest(value: Fraction, values: list[Fraction]) -> int:
    """Return the index of the nearest value, at a tie the even one, past the end the last."""
    for index, (low, high) in enumerate(itertools.pairwise(values)):
        if value <= high:
            middle = (low + high) / 2
            return index + 1 if value > middle or (value == middle and index % 2 == 1) else index
    return len(values) - 1


def quantize_by_fractions(block: list[float], gs: float) -> tuple[list[int], int]:
    """Quantize 16 finite numbers with exact rational arithmetic."""
    exact = [abs(Fraction(v)) for v in block]
    byte = nearest(Fraction(gs) * max(exact) / 6, E4M3_VALUES)
    signs = [8 if torch.tensor(v).signbit() else 0 for v in block]
    if E4M3_VALUES[byte] == 0:  # division by zero: zero stays zero, everything else saturates
        return [s | (7 if v else 0) for s, v in zip(signs, exact, strict=True)], byte
    codes = [nearest(v * Fraction(gs) / E4M3_VALUES[byte], E2M1_VALUES) for v in exact]
    return [s | c for s, c in zip(signs, codes, strict=True)], byte


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("gs", [1.0, 512.0, 448.0, 855.617, 0.0371])
def test_quantize_equals_exact_rational_arithmetic(dtype: torch.dtype, gs: float) -> None:
    """NVFP4-1, NVFP4-2, NVFP4-3: random blocks over 30 binades, blocks of ties, of zeros, and some that underflow."""
    generator = torch.Generator().manual_seed(7)
    scale = torch.tensor(gs)
    x = (
        torch.randn(40, 16, generator=generator)
        * torch.exp2(torch.randint(-14, 14, (40, 1), generator=generator))
        / gs
    )
    ties = torch.tensor([6.0, *e2m1.MIDPOINTS, *(-m for m in e2m1.MIDPOINTS), -0.0])
    x[:4] = ties * torch.exp2(torch.tensor([-3.0, 0.0, 1.0, 5.0])).unsqueeze(-1) / gs
    x[4] = 0
    x[5] = torch.linspace(-1, 1, 16) * 6 * 2.0**-10 / gs  # scale at the midpoint between 0 and the smallest
    x[6] = x[5] * 1.01
    x[7] = x[5] * 600 * 2.0**12  # beyond the largest scale
    x = x.clamp(-6e4, 6e4).to(dtype)  # float16 ends at 65504
    got = quantize_nvfp4(x, scale)
    for row in range(len(x)):
        codes, byte = quantize_by_fractions(x[row].double().tolist(), float(scale))
        assert (got.codes[row].tolist(), int(got.block_scale[row, 0])) == (codes, byte), f"block {row}"


def test_ties_in_scale_and_codes_go_to_the_even_one() -> None:
    """NVFP4-1, NVFP4-2: amax 6 * 17/16 lies halfway between the scales 1 and 1.125."""
    x = torch.zeros(2, 16)
    x[0, 0], x[1, 0] = 6 * 17 / 16, 6 * 19 / 16
    x[:, 1:8] = torch.tensor(e2m1.MIDPOINTS)
    got = quantize_nvfp4(x, ONE)
    assert e4m3.decode_e4m3(got.block_scale).flatten().tolist() == [1.0, 1.25]
    assert got.codes[0, 1:8].tolist() == [0, 2, 2, 4, 4, 6, 6]


def test_zero_blocks_store_scale_zero_and_keep_signs() -> None:
    """NVFP4-3: nothing but zeros gives the byte 0 and the codes +0 and -0."""
    x = torch.tensor([0.0, -0.0] * 8).view(1, 16)
    got = quantize_nvfp4(x, torch.tensor(448.0))
    assert got.block_scale.tolist() == [[0]]
    assert got.codes.flatten().tolist() == [0, 8] * 8


def test_underflowed_blocks_decode_to_zero() -> None:
    """NVFP4-3: at 2^-10 the scale ties to zero, just above it becomes 2^-9."""
    amax = 6 * 2.0**-10
    x = torch.tensor([[amax], [torch.nextafter(torch.tensor(amax), ONE)]]) * torch.linspace(-1, 1, 16)
    got = quantize_nvfp4(x, ONE)
    assert got.block_scale.flatten().tolist() == [0, 1]
    assert (dequantize_nvfp4(got)[0] == 0).all()
    assert dequantize_nvfp4(got)[1].abs().max() == 2.0**-9 * 3  # y = amax / 2^-9 = 3


def test_nan_elements_become_plus_six_and_do_not_count_for_amax() -> None:
    """NVFP4-4: as __hmax2 and cvt.rn.satfinite do it; a block of nothing but NaN has the scale NaN."""
    x = torch.full((2, 16), 1.5)
    x[0, 3], x[0, 4], x[1] = torch.nan, -torch.nan, torch.nan
    got = quantize_nvfp4(x, torch.tensor(4.0))
    assert got.block_scale.flatten().tolist() == [int(e4m3.encode_e4m3(ONE)), e4m3.NAN_BYTE]
    assert got.codes[0].tolist() == [7] * 16  # 1.5 * 4 / 1 = 6, and NaN
    assert got.codes[1].tolist() == [e2m1.NAN_CODE] * 16
    assert dequantize_nvfp4(got)[1].isnan().all()


def test_infinity_saturates_scale_and_code() -> None:
    """NVFP4-4: the rest of the block is scaled by gs / 448."""
    x = torch.full((1, 16), 300.0)
    x[0, 0], x[0, 1] = torch.inf, -torch.inf
    got = quantize_nvfp4(x, torch.tensor(3.0))
    assert got.block_scale.tolist() == [[e4m3.MAX_BYTE]]
    assert got.codes[0].tolist() == [7, 15] + [4] * 14  # 900 / 448 = 2.009


def test_each_expert_has_its_own_scale() -> None:
    """NVFP4-1: the first axis takes one encode scale each, as if quantized one by one."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 7, 64, generator=generator).bfloat16()
    scale = torch.rand(5, generator=generator) * 1000
    whole = quantize_nvfp4(x, scale)
    for expert in range(5):
        one = quantize_nvfp4(x[expert], scale[expert])
        assert torch.equal(whole.codes[expert], one.codes)
        assert torch.equal(whole.block_scale[expert], one.block_scale)
        assert torch.equal(whole.global_scale_dec[expert], one.global_scale_dec)
        assert torch.equal(dequantize_nvfp4(whole)[expert], dequantize_nvfp4(one))


def test_chunks_are_invisible() -> None:
    """NVFP4-1: more elements than are handled at a time, in another shape, from a view that is not contiguous."""
    x = torch.randn(1100, 1024, generator=torch.Generator().manual_seed(4)).bfloat16()
    scale = torch.tensor(700.0)
    whole = quantize_nvfp4(x, scale)
    parts = [quantize_nvfp4(part, scale) for part in x.split(100)]
    assert torch.equal(whole.codes, torch.cat([p.codes for p in parts]))
    assert torch.equal(whole.block_scale, torch.cat([p.block_scale for p in parts]))
    turned = quantize_nvfp4(x.T.contiguous().T, scale)
    assert torch.equal(whole.codes, turned.codes)


def test_dequantize_returns_code_times_both_scales() -> None:
    """NVFP4-2: every code with every block scale; bfloat16 without a global scale is exact."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(127, 1)
    block_scale = torch.arange(127, dtype=torch.uint8).unsqueeze(-1)
    dec = torch.tensor(0.25)
    values = dequantize_nvfp4(Nvfp4Tensor(codes, block_scale, dec))
    for byte in (0, 1, 7, 8, 63, 126):
        expected = [
            float(E2M1_VALUES[c & 7] * E4M3_VALUES[byte] / 4) * (-1 if c & 8 else 1) for c in range(16)
        ]
        assert values[byte].tolist() == expected
    exact = decode_blocks(codes, block_scale)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.equal(decode_blocks(codes, block_scale, dtype).double(), exact)
    assert torch.equal(decode_blocks(codes, block_scale.view(torch.float8_e4m3fn)), exact)


def test_the_encode_scale_maps_amax_to_the_largest_scale() -> None:
    """NVFP4-1: 448 * 6 / amax, and 1 for a tensor of zeros; quantizing with it saturates nothing."""
    amax = torch.tensor([6.0, 1.0, 0.0, 2688.0])
    assert global_scale_enc(amax).tolist() == [448.0, 2688.0, 1.0, 1.0]
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    got = quantize_nvfp4(x, global_scale_enc(x.abs().max()))
    assert int(got.block_scale.max()) == e4m3.MAX_BYTE
    error = (dequantize_nvfp4(got) - x.double()).abs().max()
    assert error <= x.abs().max().double() / 6 * 1.07  # half of the widest step, 4 to 6, of the largest block
    assert SCALE_RANGE == 2688


def test_empty_tensors_are_quantized() -> None:
    """NVFP4: no row, no block."""
    got = quantize_nvfp4(torch.empty(3, 0, 32), torch.ones(3))
    assert got.codes.shape == (3, 0, 32)
    assert got.block_scale.shape == (3, 0, 2)
    assert dequantize_nvfp4(got).shape == (3, 0, 32)


def test_wrong_arguments_raise() -> None:
    """NVFP4: dtype, extent, and the number and type of scales."""
    x = torch.zeros(2, 16)
    with pytest.raises(ValueError, match=r"x must be bfloat16, float16 or float32, got torch\.float64"):
        quantize_nvfp4(x.double(), ONE)
    with pytest.raises(ValueError, match=r"multiple of 16, got \(2, 8\)"):
        quantize_nvfp4(x[:, :8], ONE)
    with pytest.raises(ValueError, match="multiple of 16"):
        quantize_nvfp4(torch.zeros(()), ONE)
    with pytest.raises(
        ValueError, match=r"must be float32, got torch\.bfloat16: kernels read four raw bytes"
    ):
        quantize_nvfp4(x, ONE.bfloat16())
    with pytest.raises(ValueError, match=r"must hold 1 or 2 values, got \(3,\)"):
        quantize_nvfp4(x, torch.ones(3))
    with pytest.raises(ValueError, match="one per 16 codes"):
        decode_blocks(torch.zeros(2, 32, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8))
    assert quantize_nvfp4(x, torch.ones(1)).codes.shape == (2, 16)


def test_inputs_are_left_alone() -> None:
    """NVFP4: quantizing reads."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[0, 0] = torch.nan
    before: Tensor = x.clone()
    quantize_nvfp4(x, torch.tensor(9.0))
    assert torch.equal(x.view(torch.int16), before.view(torch.int16))


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_each_row_may_have_a_scale_of_its_own(rows: int) -> None:
    x = torch.randn(rows, 32, generator=torch.Generator().manual_seed(rows))
    scales = torch.logspace(0, 4, 5)[:rows]
    together = quantize_nvfp4(x, scales)
    assert together.codes.shape == x.shape
    for row in range(rows):
        alone = quantize_nvfp4(x[row], scales[row])
        assert torch.equal(together.codes[row], alone.codes)
        assert torch.equal(together.block_scale[row], alone.block_scale)

"""Formats as values: what codes stand for, which steps they lie on, and that the reference quantizes into them."""

from __future__ import annotations

import math

import pytest
import torch

from reference import mxfp4, nvfp4
from reference.certificate import certified, largest_partial_sums, magnitude_sums, step_exponents
from reference.formats import FORMATS, Coded, Format

PLAIN = [form for form in FORMATS.values() if form.plain]


def drawn(rows: int, k: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("form", PLAIN, ids=lambda form: form.name)
def test_plain_formats_hold_values_as_they_are(form: Format) -> None:
    x = drawn(3, 64).to(form.dtype)
    coded = form.quantize(x)
    assert coded.codes.dtype == form.dtype == form.layer_dtype
    assert coded.block_scale.shape == (3, 0)
    assert torch.equal(form.values(coded, torch.float64), x.double())


def test_block_formats_decode_as_their_own_references_do() -> None:
    x = drawn(3, 64)
    scale = torch.tensor([700.0])
    by_nvfp4 = nvfp4.quantize_nvfp4(x, scale)
    coded = FORMATS["nvfp4"].quantize(x, scale)
    assert torch.equal(coded.codes, by_nvfp4.codes)
    assert torch.equal(
        FORMATS["nvfp4"].values(coded), nvfp4.decode_blocks(coded.codes, coded.block_scale, torch.float32)
    )
    by_mxfp4 = mxfp4.quantize_mxfp4(x)
    coded = FORMATS["mxfp4"].quantize(x)
    assert torch.equal(coded.block_scale, by_mxfp4.block_scale)
    assert torch.equal(FORMATS["mxfp4"].values(coded, torch.float64), mxfp4.dequantize_mxfp4(by_mxfp4))


@pytest.mark.parametrize("form", [f for f in FORMATS.values() if f.swizzled], ids=lambda form: form.name)
def test_scale_bytes_are_what_they_are_called(form: Format) -> None:
    one, nan, largest = (
        float(form.scales(torch.tensor(byte, dtype=torch.uint8)))
        for byte in (form.one_scale, form.nan_scale, form.largest_scale)
    )
    assert (one, largest) == (1.0, {"e4m3": 448.0, "ue8m0": 2.0**127}[form.scale])
    assert math.isnan(nan)


def test_a_map_changes_every_part() -> None:
    coded = Coded(*(torch.arange(8).view(2, 4) for _ in range(2)), torch.ones(2, 1)).map(lambda t: t[1:])
    assert coded.row_scale is not None
    assert (len(coded.codes), len(coded.block_scale), len(coded.row_scale)) == (1, 1, 1)


def test_bfloat16_activations_are_certified_on_a_grid_and_not_on_normal_data() -> None:
    """GEMM-2: eight significant bits and any exponent need data that were drawn for it."""
    form, weights = FORMATS["bf16"], FORMATS["nvfp4"]
    b = weights.values(weights.quantize(drawn(16, 1024, 5), torch.tensor([500.0])))
    b_grid = torch.randint(-12, 13, (16, 1024), generator=torch.Generator().manual_seed(1)) / 4
    for x, y, wanted in ((drawn(16, 1024), b, 0.0), (torch.round(drawn(16, 1024).float() * 8), b_grid, 1.0)):
        a = form.values(form.quantize(x))
        sums, exact = magnitude_sums(a, y), a.double() @ y.double().T
        held = certified(
            largest_partial_sums(sums, exact, 1024), step_exponents(a), step_exponents(y.float()), 24
        )
        assert float(held.double().mean()) == wanted

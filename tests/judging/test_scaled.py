"""Quantizers of MX formats and FP8: the reference passes, and one step of a scale or of an element is illegal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.judging.quantize import QuantizerInput
from harness.judging.scaled import judge_scaled
from harness.problems.rows import Rows
from reference.e4m3 import round_to_byte
from reference.formats import FORMATS, Coded, Format
from reference.legal_scaled import legal_scales

SCALED = [
    FORMATS[name]
    for name in ("nvfp4_46", "mxfp4", "mxfp4_up", "mxfp8", "mxfp8_up", "fp8", "fp8_token", "fp8_128")
]
ROWS = Rows.valid([3, 4], 6, "cpu")
ENC = torch.linspace(0.3, 1.7, 7).unsqueeze(-1)
formats = pytest.mark.parametrize("form", SCALED, ids=lambda form: form.name)


def drawn() -> Tensor:
    x = torch.randn(7, 256, generator=torch.Generator().manual_seed(4)) * 3
    x[2, :128] = 0
    x[3, 5] = 900
    return x.bfloat16()


def found(form: Format, stored: Coded, x: Tensor | None = None) -> dict[str, int]:
    given = QuantizerInput.known(drawn() if x is None else x)
    return {c.stage: c.illegal for c in judge_scaled("q", given, stored, ENC, ROWS, form)}


@formats
def test_what_the_reference_stores_is_legal(form: Format) -> None:
    """MXFP4-1, MXFP4-2, MX-1, FP8-1, FP8-2, FP8-3."""
    stored = form.quantize(drawn(), ENC.squeeze(-1))
    assert set(found(form, stored).values()) == {0}
    for one in judge_scaled("q", QuantizerInput.known(drawn()), stored, ENC, ROWS, form):
        assert one.accepted_altered == []


@formats
def test_an_element_that_is_one_code_off_is_illegal(form: Format) -> None:
    stored = form.quantize(drawn(), ENC.squeeze(-1))
    codes = stored.codes.clone()
    codes[4, 40] ^= 1
    assert found(form, replace(stored, codes=codes))["q.codes"] == 1


@pytest.mark.parametrize("form", [f for f in SCALED if f.scale == "ue8m0"], ids=lambda form: form.name)
def test_a_scale_of_twice_the_size_is_illegal_even_if_used_consistently(form: Format) -> None:
    """MXFP4-1: which is how "floor" and "ceil" differ."""
    stored = form.quantize(drawn())
    doubled = form.scales(stored.block_scale).double().repeat_interleave(32, -1) * 2
    consistent = Coded(form.encode(drawn().double() / doubled), stored.block_scale + 1)
    live = int((drawn().view(7, -1, 32).abs().amax(-1) > 0).sum())
    assert found(form, consistent) == {"q.scale": live, "q.codes": 0}


def test_roundings_of_e8m0_scales_are_told_apart() -> None:
    down, up = FORMATS["mxfp4"], FORMATS["mxfp4_up"]
    assert found(up, down.quantize(drawn()))["q.scale"] > 20
    assert found(down, up.quantize(drawn()))["q.scale"] > 20


@pytest.mark.parametrize("name", ["fp8_token", "fp8_128"])
def test_a_float32_scale_may_be_off_by_its_roundings_only(name: str) -> None:
    """FP8-1."""
    form = FORMATS[name]
    stored = form.quantize(drawn())
    field = "row_scale" if form.rows else "block_scale"
    scale = getattr(stored, field)
    amax = drawn().float().abs().view(7, scale.shape[-1], -1).amax(-1)
    as_kernels_do = amax.clamp(min=0 if form.rows else 1e-4) * torch.tensor(1 / 448)
    assert not torch.equal(as_kernels_do, scale)
    assert set(found(form, replace(stored, **{field: as_kernels_do})).values()) == {0}
    assert found(form, replace(stored, **{field: scale * 1.0001}))["q.scale"] >= 6


def test_a_block_that_is_not_finite_has_a_scale_of_nan() -> None:
    """MXFP4-3: and any elements; other blocks are judged all the same."""
    form, x = FORMATS["mxfp4"], drawn()
    x[1, 3], x[5, 200] = torch.nan, torch.inf
    stored = form.quantize(x)
    assert found(form, stored, x) == {"q.scale": 0, "q.codes": 0}
    assert found(form, replace(stored, block_scale=stored.block_scale.clamp(max=254)), x)["q.scale"] == 2


def test_a_block_of_zeros_may_have_any_scale() -> None:
    ends = legal_scales(FORMATS["mxfp4"], torch.zeros(1), torch.zeros(1))
    assert (float(ends.low), float(ends.high)) == (0.0, torch.inf)


def test_of_four_and_six_the_smaller_error_is_legal() -> None:
    """NVFP4-5: scales of amax / 6 everywhere are legal scales, and wrong where amax / 4 loses less."""
    form = FORMATS["nvfp4_46"]
    stored = form.quantize(drawn(), ENC.squeeze(-1))
    gs, blocks = ENC.double(), drawn().double().view(7, -1, 16)
    byte = round_to_byte(blocks.abs().amax(-1) * gs / 6)
    by = form.scales(byte).double().repeat_interleave(16, -1).clamp(min=2.0**-9) / gs
    six = Coded(form.encode(drawn().double() / by), byte)
    differ = int((stored.block_scale != byte).sum())
    assert 10 < differ < stored.block_scale.numel()
    assert found(form, six)["q.scale"] == differ
    assert found(form, six)["q.codes"] == 0

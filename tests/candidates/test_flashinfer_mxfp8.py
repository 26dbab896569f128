"""The masked MXFP8 quantizers against the real flashinfer-python package, 0.7.4 and later; only the launches are replaced."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.cutedsl_support import import_quietly, installed_version, release
from harness.candidates.flashinfer_mxfp8 import FlashInferMxfp8
from harness.candidates.fused_support import changed
from harness.judging.contract import checked_quantized
from reference.formats import FORMATS, Coded

pytestmark = pytest.mark.flashinfer
FORM = FORMATS["mxfp8_up"]
OLDER = release(installed_version("flashinfer-python")) < (0, 7, 4)
"""Without these quantizers: 0.7.4 is judged by tests/candidates/test_versions.py."""


class OnCuda(Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def on_cuda(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(OnCuda)


class _Compiled:
    """The compiled quantizers."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def mxfp8_grouped_quant_sm100(self, x: Tensor, mask: Tensor, pdl: bool) -> tuple[Tensor, Tensor]:
        self.calls.append("quantize")
        return self._stored(x.as_subclass(Tensor), mask)

    def silu_and_mul_mxfp8_experts_quantize_sm100(
        self, x: Tensor, mask: Tensor, pdl: bool
    ) -> tuple[Tensor, Tensor]:
        self.calls.append("silu")
        gate, up = x.as_subclass(Tensor).double().chunk(2, -1)
        return self._stored((gate * gate.sigmoid() * up).to(torch.bfloat16), mask)

    def _stored(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        assert mask.dtype == torch.int32
        coded = FORM.quantize(x, None)
        values, scale = layouts.stored(FORM, coded)
        return values.view(torch.float8_e4m3fn), scale


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> _Compiled:
    found = _Compiled()
    module = import_quietly("flashinfer.quantization.fp8_quantization")
    monkeypatch.setattr(module, "get_compute_capability", lambda _: (10, 0))
    monkeypatch.setattr(module, "device_support_pdl", lambda _: False)
    monkeypatch.setattr(module, "get_mxfp8_quantization_sm100_module", lambda: found)
    return found


def aligned(tensor: Tensor) -> Tensor:
    """Return a copy whose address is a multiple of 32."""
    memory = torch.zeros(tensor.numel() + 32, dtype=tensor.dtype)
    lead = (-memory.data_ptr()) % 32 // tensor.element_size()
    memory[lead : lead + tensor.numel()] = tensor.flatten()
    return memory[lead : lead + tensor.numel()].view(tensor.shape)


@pytest.mark.parametrize("stage", ["quantize_grouped", "silu_mul_quantize_grouped"])
def test_the_quantizers_return_what_the_contract_says(compiled: _Compiled, stage: str) -> None:
    torch.manual_seed(1)
    silu = stage.startswith("silu")
    x = torch.randn(2, 40, 256 if silu else 128).to(torch.bfloat16)
    mask, scale = torch.tensor([40, 3], dtype=torch.int32), torch.ones(2)
    call = getattr(FlashInferMxfp8(device="cpu"), stage)
    if OLDER:
        with pytest.raises(
            (RuntimeError, ValueError), match=r"has no function|Unsupported backend .* 'cuda'"
        ):
            call(on_cuda(aligned(x)), on_cuda(mask), scale)
        return
    result = call(on_cuda(aligned(x)), on_cuda(mask), scale)
    found = checked_quantized(result, torch.Size((2, 40, 128)), stage, "cpu", FORM)
    given = x if not silu else (
        (gate := x.double()[..., :128]) * gate.sigmoid() * x.double()[..., 128:]
    ).to(torch.bfloat16)  # fmt: skip
    expected: Coded = FORM.quantize(given, None)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.block_scale, expected.block_scale)
    assert compiled.calls == ["silu" if silu else "quantize"]


@pytest.mark.parametrize("name", ["mxfp8_grouped_quantize", "silu_and_mul_mxfp8_experts_quantize"])
def test_the_package_has_them_or_says_so(name: str) -> None:
    found = changed(name)
    version: Any = importlib.import_module("importlib.metadata").version("flashinfer-python")
    assert (found == "") == hasattr(import_quietly("flashinfer"), name), (version, found)
    assert not found or f"has no function {name}" in found

"""Why FlashInfer's path cannot run, without FlashInfer and without a GPU."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from harness.candidates import cutedsl_support, known_kernels, sglang_cutedsl, vllm_cutedsl
from harness.candidates.flashinfer_cutedsl import FlashInferCuteDsl
from harness.candidates.sglang_cutedsl import SglangCuteDsl
from harness.candidates.vllm_cutedsl import VllmCuteDsl

ALL = [FlashInferCuteDsl, SglangCuteDsl, VllmCuteDsl]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine whose packages and device are set by the test."""
    state = SimpleNamespace(
        modules={"flashinfer", "cutlass", "sglang", "vllm"},
        versions={
            "flashinfer-python": "0.7.2.post1",
            "nvidia-cutlass-dsl": "4.8.1",
            "sglang": "0.5.23",
            "vllm": "0.33.0",
        },
        capability=None,
        imported=[],
    )

    def refuse(module: str) -> None:
        state.imported.append(module)
        raise OSError("libcudart.so.13 not found")

    def find_spec(name: str) -> str | None:
        return name if name in state.modules else None

    monkeypatch.setattr(cutedsl_support.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(cutedsl_support, "installed_version", lambda d: state.versions.get(d, ""))
    monkeypatch.setattr(cutedsl_support, "import_quietly", refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: state.capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: state.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    for switch in (
        "FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH",
        "TRTLLM_DISABLE_FP4_QUANT_FAST_MATH",
        "FLASHINFER_NVFP4_4OVER6",
    ):
        monkeypatch.delenv(switch, raising=False)
    return state


@pytest.mark.parametrize(
    ("kind", "missing", "words"),
    [
        (
            FlashInferCuteDsl,
            "flashinfer",
            ["flashinfer-python", "FP4 quantizers", "pip install 'fp4-moe-harness[cutedsl]'"],
        ),
        (
            FlashInferCuteDsl,
            "cutlass",
            ["nvidia-cutlass-dsl", "CuTe DSL compiler", "pip install 'fp4-moe-harness[cutedsl]'"],
        ),
        (
            SglangCuteDsl,
            "sglang",
            ["needs sglang", "flashinfer_cutedsl_moe_masked", "pip install 'fp4-moe-harness[sglang]'"],
        ),
        (SglangCuteDsl, "flashinfer", ["sglang-cutedsl needs flashinfer-python"]),
        (
            VllmCuteDsl,
            "vllm",
            ["needs vllm", "flashinfer_cutedsl_moe_masked", "pip install 'fp4-moe-harness[vllm]'"],
        ),
    ],
)
def test_a_missing_package_is_named_with_its_purpose_and_command(installed, kind, missing, words) -> None:
    installed.modules.discard(missing)
    support = kind().support()
    assert not support
    assert all(word in support.reason for word in words), support.reason


@pytest.mark.parametrize("kind", ALL)
def test_without_a_device_nothing_heavy_is_imported(installed, kind) -> None:
    support = kind().support()
    assert support.reason.startswith(
        f"{kind.name} needs a CUDA device of compute capability 10.0, 10.3 or 10.7"
    )
    assert installed.imported == []


@pytest.mark.parametrize(
    ("capability", "why"),
    [
        ((8, 0), "no FP4 quantize kernels"),
        ((9, 0), "empty bodies (`__CUDA_ARCH__ >= 1000`"),
        ((11, 0), "refuses SM110"),
        ((12, 0), "needs tensor memory"),
        ((12, 1), "needs tensor memory"),
        ((10, 7), "needs nvidia-cutlass-dsl 4.8 or later"),
    ],
)
@pytest.mark.parametrize("kind", ALL)
def test_another_device_is_refused_with_what_would_happen_on_it(installed, kind, capability, why) -> None:
    installed.capability = capability
    support = kind().support()
    assert not support
    assert why in support.reason
    assert f"{capability[0]}.{capability[1]} (NVIDIA Test)" in support.reason
    assert installed.imported == []


@pytest.mark.parametrize("capability", [(10, 0), (10, 3), (10, 7)])
@pytest.mark.parametrize("kind", ALL)
def test_a_package_that_fails_to_import_is_a_reason_and_not_a_crash(installed, kind, capability) -> None:
    installed.capability = capability
    installed.modules.add("cutlass.utils.rubin_helpers")
    assert "import flashinfer failed with OSError: libcudart.so.13 not found" in kind().support().reason


def test_the_four_over_six_search_cannot_be_judged(installed, monkeypatch) -> None:
    installed.capability = (10, 0)
    monkeypatch.setenv("FLASHINFER_NVFP4_4OVER6", "1")
    assert "FLASHINFER_NVFP4_4OVER6=1" in FlashInferCuteDsl().support().reason
    monkeypatch.setenv("FLASHINFER_NVFP4_4OVER6", "0")
    assert "FLASHINFER_NVFP4_4OVER6" not in FlashInferCuteDsl().support().reason


@pytest.mark.parametrize(
    ("kind", "distribution", "version", "reason"),
    [
        (SglangCuteDsl, "sglang", "0.5.5.post3", "needs sglang 0.5.6 or later, found 0.5.5.post3"),
        (SglangCuteDsl, "sglang", "0.5.6", "needs a CUDA device"),
        (VllmCuteDsl, "vllm", "0.11.2", "needs vllm 0.12 or later, found 0.11.2"),
        (VllmCuteDsl, "vllm", "0.12.0", "needs a CUDA device"),
    ],
)
def test_versions_before_the_first_supported_one_are_refused(
    installed, kind, distribution, version, reason
) -> None:
    installed.versions[distribution] = version
    assert reason in kind().support().reason


def test_an_engine_outside_the_tested_series_and_unknown_kernels_are_a_warning(
    installed, monkeypatch
) -> None:
    known = {part: next(iter(rows)) for part, rows in known_kernels.known().items()}
    monkeypatch.setattr(known_kernels, "source_fingerprint", known.get)
    monkeypatch.setattr(known_kernels, "installed_version", cutedsl_support.installed_version)
    assert [kind().warning for kind in ALL] == ["", "", ""]
    installed.versions["flashinfer-python"] = "0.9.0"  # other words around the same kernels
    assert [kind().warning for kind in ALL] == ["", "", ""]
    known[known_kernels.GEMM] = "abc"
    installed.versions |= {"nvidia-cutlass-dsl": "5.0.0", "vllm": "0.34.0"}
    new = (
        "new version, not yet known: masked GEMM of flashinfer-python 0.9.0 (fingerprint abc), "
        "nvidia-cutlass-dsl 5.0.0"
    )
    assert FlashInferCuteDsl().warning == new
    assert VllmCuteDsl().warning == f"outside the tested versions: vllm 0.34.0 (tested: 0.33); {new}"
    assert SglangCuteDsl().warning == new


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "switch", ["FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH", "TRTLLM_DISABLE_FP4_QUANT_FAST_MATH"]
)
def test_the_arithmetic_is_the_environments(installed, monkeypatch, kind, switch) -> None:
    candidate = kind()
    assert candidate.traits.arithmetic == "fast"
    monkeypatch.setenv(switch, "true")  # the C++ side compares with exactly "1"
    assert candidate.traits.arithmetic == "fast"
    monkeypatch.setenv(switch, "1")
    assert candidate.traits.arithmetic == "exact"


@pytest.mark.parametrize(
    ("version", "activations"),
    [("0.5.15.post1", ("silu",)), ("0.5.16", ("silu", "relu2")), ("", ("silu", "relu2"))],
)
def test_sglangs_activations_are_those_of_its_version(installed, version, activations) -> None:
    installed.versions["sglang"] = version
    assert SglangCuteDsl().traits.activations == activations
    assert VllmCuteDsl().traits.activations == ("silu",)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("0.7.2.post1", (0, 7, 2)), ("4.8", (4, 8)), ("0.5.23rc1", (0, 5, 23)), ("dev", ())],
)
def test_release_reads_the_leading_numbers(version, numbers) -> None:
    assert cutedsl_support.release(version) == numbers


@pytest.mark.parametrize(
    ("kind", "modules"), [(SglangCuteDsl, [sglang_cutedsl.MODULE]), (VllmCuteDsl, list(vllm_cutedsl.MODULES))]
)
def test_an_engine_that_fails_to_import_is_a_reason_and_a_runtime_error(installed, kind, modules) -> None:
    arguments = dict.fromkeys(sglang_cutedsl.PARAMETERS, torch.zeros(1)) | {
        "hidden_states": (torch.zeros(1), None)
    }
    for call in (kind().masked_moe, kind().masked_moe_tapped):
        with pytest.raises(RuntimeError, match="failed with OSError: libcudart"):
            call(**arguments)
    assert set(installed.imported) <= set(modules)


def test_importing_and_constructing_the_candidates_is_light() -> None:
    code = (
        "import sys; from harness.candidates import flashinfer_cutedsl, sglang_cutedsl, vllm_cutedsl; "
        "flashinfer_cutedsl.FlashInferCuteDsl().traits, sglang_cutedsl.SglangCuteDsl(), vllm_cutedsl.VllmCuteDsl(); "
        "print([m for m in ('torch', 'flashinfer', 'cutlass', 'sglang', 'vllm') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"

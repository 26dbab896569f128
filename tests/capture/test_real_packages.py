"""FlashInfer's and SGLang's own functions, captured while they run over interpreted kernels: only the launch is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.faults.fault import all_faults
from harness.records.parts.replay import ReplayedCall
from harness.replay.reading import read_capture
from harness.replay.replay import replay

pytestmark = pytest.mark.flashinfer
ROOT = Path(__file__).parents[2]


def captured(folder: Path, candidate: str, problem: str) -> list[ReplayedCall]:
    """Return what is found of the calls that a run of the harness itself makes of a package."""
    check = ["check", "--candidate", candidate, "--rule", "MOE", "--problem", problem, "--no-canary"]
    command = ["-m", "harness.cli", *check, "--out", str(folder / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "harness.capture", "--out", str(folder / "cap"), "--", sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return list(replay(read_capture(folder / "cap")))


def test_flashinfers_masked_gemm_is_captured_and_passes(tmp_path: Path) -> None:
    lines = captured(tmp_path, "flashinfer-cutedsl-cpu", "1x4x256x128:4:normal:1")
    assert {line.stage for line in lines} == {"masked_grouped_gemm"}
    assert {str(line.verdict) for line in lines} == {"PASS"}
    assert len(lines) > 5, "the probes and both GEMMs of the layer"


@pytest.mark.long
def test_sglangs_masked_moe_is_captured_with_the_gemms_inside(tmp_path: Path) -> None:
    candidate = "harness.candidates.engines.sglang_loader:SglangOverCuteDsl"
    lines = captured(tmp_path, candidate, "2x4x256x128:4,1:normal:1")
    assert {line.stage for line in lines} == {"masked_moe", "masked_grouped_gemm"}
    assert {str(line.verdict) for line in lines} == {"PASS"}


FAULTS = (
    "alpha_of_neighbour", "alpha_of_expert_0", "alpha_dropped", "alpha_twice", "alpha_rounded_to_bf16", "accumulator_fp16",
    "weight_nibbles_swapped", "weights_of_neighbour_expert", "weight_scales_read_linear", "k_tail_missing",
    "output_truncated", "cast_before_alpha", "masked_m_minus_1", "codes_truncated", "codes_clamped_at_4",
    "nibbles_swapped", "global_scale_inverted", "global_scale_of_expert_0", "amax_of_half_block", "block_scale_too_low",
    "scales_linear", "gate_and_up_swapped", "gelu_instead_of_silu", "clamp_limit_wrong", "no_bf16_before_quantization",
)  # fmt: skip


@pytest.fixture(scope="module", params=["sglang", "vllm"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures of an engine's own functions, one for each fault."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, str(Path(__file__).parent / "real" / "serve.py"), request.param, str(folder)]
    done = subprocess.run(
        [*command, "healthy", "prequantized", *FAULTS],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_an_engines_own_functions_pass(served: Path) -> None:
    lines = list(replay(read_capture(served / "healthy")))
    assert {line.stage for line in lines} == {
        "quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm", "masked_moe"
    }  # fmt: skip
    assert [str(line.verdict) for line in lines] == ["PASS"] * 5


def test_tokens_that_come_quantized_pass_in_either_engines_layout(served: Path) -> None:
    (process,) = read_capture(served / "prequantized")
    lines = list(replay([process]))
    assert [line.stage for line in lines] == [
        "masked_grouped_gemm", "silu_mul_quantize_grouped", "masked_grouped_gemm", "masked_moe"
    ]  # fmt: skip
    assert {str(line.verdict) for line in lines} == {"PASS"}
    process.calls[:] = process.calls[-1:]  # the layer alone
    (line,) = replay([process])
    assert (str(line.verdict), line.compared) == ("PASS", 14 * 128), line.words
    assert line.error is not None
    assert line.error < 0.3


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_below_flashinfers_launch_is_found_and_named(served: Path, name: str) -> None:
    lines = list(replay(read_capture(served / name)))
    first = next(line for line in lines if line.verdict == "FAIL")
    fault = all_faults()[name]
    assert first.stage in fault.stages
    assert {name, *fault.same_as} & {one["fault"] for one in first.diagnosis}

"""FlashInfer's and SGLang's own functions, captured while they run over interpreted kernels: only the launch is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.replay.reading import read_capture
from harness.replay.replay import Line, replay

pytestmark = pytest.mark.flashinfer
ROOT = Path(__file__).parents[2]


def captured(folder: Path, candidate: str, problem: str) -> list[Line]:
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

"""Files that FlashInfer and SGLang themselves dump, of layers that run through their own functions (tests/capture/real)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records.parts.replay import ReplayedCall
from harness.replay.imports import workloads
from harness.replay.reading import read_capture
from harness.replay.replay import replay

pytestmark = pytest.mark.flashinfer
ROOT = Path(__file__).parents[3]
STAGES = ["quantize_grouped", "masked_grouped_gemm", "silu_mul_quantize_grouped", "masked_grouped_gemm"]


def run(script: Path, *words: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, str(script), *words], env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def lines_of(folder: Path) -> list[ReplayedCall]:
    return list(replay(read_capture(folder)))


def serve(folder: Path, *faults: str, **environment: str) -> None:
    run(ROOT / "tests/capture/real/serve.py", "sglang", str(folder), *faults, **environment)


@pytest.mark.parametrize("safetensors", ["0", "1"])
def test_flashinfers_own_api_log_is_judged(tmp_path: Path, safetensors: str) -> None:
    dumps = tmp_path / "dumps"
    log = {"FLASHINFER_LOGLEVEL": "10", "FLASHINFER_LOGDEST": os.devnull, "FLASHINFER_DUMP_DIR": str(dumps)}
    serve(tmp_path / "cap", "healthy", "codes_truncated", **log, FLASHINFER_DUMP_SAFETENSORS=safetensors)
    lines = lines_of(dumps)
    assert [line.stage for line in lines] == STAGES * 2
    assert [str(line.verdict) for line in lines[:4]] == ["PASS"] * 4
    wrong = [line for line in lines if line.verdict == "FAIL"]
    assert lines.index(wrong[0]) == 4
    assert "codes_truncated" in {one["fault"] for one in wrong[0].diagnosis}


def test_sglangs_own_dumper_is_judged(tmp_path: Path) -> None:
    serve(tmp_path / "cap", "healthy", "alpha_dropped")
    for name in ("healthy", "alpha_dropped"):
        run(Path(__file__).parent / "dump_by_sglang.py", str(tmp_path / "cap" / name), str(tmp_path / name))
    assert [str(line.verdict) for line in lines_of(tmp_path / "healthy")] == ["PASS"] * 4
    wrong = [line for line in lines_of(tmp_path / "alpha_dropped") if line.verdict == "FAIL"]
    assert wrong[0].diagnosis[0]["fault"] == "alpha_dropped"


def test_a_definitions_name_and_inputs_are_those_that_flashinfer_traces(tmp_path: Path) -> None:
    import torch

    flashinfer = pytest.importorskip("flashinfer")
    given = {
        "a": torch.zeros(3, 10, 256).bfloat16(), "mask": torch.zeros(3).int(), "a_global_sf": torch.ones(3)
    }  # fmt: skip
    found = flashinfer.silu_and_mul_scaled_nvfp4_experts_quantize.fi_trace(**given)
    target = workloads.target_of(found["name"])
    assert target is not None
    assert target.stage == "silu_mul_quantize_grouped"
    assert list(found["inputs"]) == list(given)

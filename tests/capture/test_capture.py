"""What is captured: every call of the stages with its inputs as they were, by which options, and that an engine never fails by it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import harness.capture
from harness.capture.settings import CaptureSettings
from harness.capture.tensors import stored
from harness.replay.captured import Captured, Process
from harness.replay.reading import read_capture
from tests.capture.conftest import ENGINE, Engine

ROOT = Path(__file__).parents[2]
STAGES = [
    "quantize_grouped",
    "masked_grouped_gemm",
    "silu_mul_quantize_grouped",
    "masked_grouped_gemm",
    "masked_moe",
]


def calls_of(folder: Path) -> list[Captured]:
    (process,) = read_capture(folder)
    return process.calls


def run(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the engine as a user would."""
    command = [
        "-m",
        "harness.capture",
        "--out",
        str(folder),
        *options,
        "--",
        "python",
        str(ENGINE / "serve.py"),
    ]
    path = os.pathsep.join((str(ROOT), str(ENGINE)))
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_every_stage_of_every_layer_is_captured_inside_its_layer(captured: Callable[..., Path]) -> None:
    calls = calls_of(captured(count=2))
    assert [call.stage for call in calls] == STAGES * 2
    assert [call.layer for call in calls] == [0] * 5 + [1] * 5
    outer = [call.number for call in calls if call.parent is None]
    assert [call.parent for call in calls] == [outer[0]] * 4 + [None] + [outer[1]] * 4 + [None]
    assert {call.function for call in calls} >= {"sglang.moe.flashinfer_cutedsl_moe_masked"}


@pytest.mark.parametrize("before", [True, False], ids=["before_the_engine", "after_it"])
def test_a_program_captures_itself(tmp_path: Path, *, before: bool) -> None:
    """As docs/capture.md shows: one call of `install`, before or after the engine is imported."""
    install = f"import harness.capture; harness.capture.install({str(tmp_path / 'cap')!r}, calls=1)"
    lines = [install, "import sglang.moe"] if before else ["import sglang.moe", install]
    serve = f"import runpy; runpy.run_path({str(ENGINE / 'serve.py')!r}, run_name='__main__')"
    path = os.pathsep.join((str(ROOT), str(ENGINE)))
    done = subprocess.run(
        [sys.executable, "-c", "; ".join([*lines, serve])],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [call.stage for call in calls_of(tmp_path / "cap")] == STAGES


def test_install_refuses_an_option_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="callls"):
        harness.capture.install(str(tmp_path), callls=1)


def test_inputs_are_what_they_were_before_the_call_and_keep_their_strides(
    engine: Engine, tmp_path: Path
) -> None:
    engine.capture(tmp_path, "alpha_folded_in_place")  # changes alpha in place
    gemm = next(call for call in calls_of(tmp_path) if call.stage == "masked_grouped_gemm")
    assert gemm.inputs["a"].stride() == (64, 1, 640), "a view of (l, m, k / 2)"
    assert gemm.inputs["out"].shape == (10, 128, 3)
    assert torch.equal(gemm.inputs["alpha"].flatten(), engine._loaded(0)["w1_alpha"])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24).view(4, 6).bfloat16()[:, 1:3],
        torch.arange(6).view(2, 3).t(),
        torch.ones(1).expand(5),
        torch.zeros(0, 3),
        torch.tensor(3.0),
        torch.arange(16, dtype=torch.uint8).view(torch.float8_e4m3fn).view(2, 8),
    ],
)
def test_a_tensor_is_stored_with_what_lies_between_its_elements(tensor: torch.Tensor) -> None:
    found = stored(tensor).tensor()
    assert found.stride() == tensor.stride()
    assert torch.equal(found.float(), tensor.float())


def test_weights_are_stored_once(captured: Callable[..., Path], engine: Engine, tmp_path: Path) -> None:
    folder = captured()
    files = {path.name for path in folder.glob("*/weights-*")}
    assert len(files) == 4, "w1, w2 and their block scales; the GEMMs' b are the same memory"
    index = next(folder.glob("*/index.jsonl")).read_text()
    assert sum(index.count(name) for name in files) == 8


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"skip": 1}, [1]),
        ({"every": 2}, [0]),
        ({"calls": 1}, [0]),
        ({"layers": (1,)}, [1]),
        ({"ranks": (3,)}, None),
    ],
)
def test_options_choose_whole_layers(
    captured: Callable[..., Path], options: dict[str, object], numbers: list[int] | None
) -> None:
    folder = captured(count=2, **options)
    if numbers is None:
        assert not folder.exists()
        return
    layers = [call.layer for call in calls_of(folder) if call.stage == "masked_moe"]
    assert layers == numbers


def test_a_byte_budget_ends_the_capture_and_says_so(captured: Callable[..., Path], engine: Engine) -> None:
    folder = captured(count=40, megabytes=1)
    (process,) = read_capture(folder)
    assert 5 < len(process.calls) < 200
    assert "the byte budget is used up" in process.torn
    assert engine.session.idle
    assert sum(path.stat().st_size for path in process.folder.iterdir()) < 1.2e6


def test_a_command_and_its_workers_are_captured_rank_by_rank(tmp_path: Path) -> None:
    done = run(tmp_path / "out", RANKS="2")
    assert (done.returncode, done.stdout.count("step 0")) == (0, 2), done.stderr
    processes = read_capture(tmp_path / "out")
    assert [process.rank for process in processes] == [0, 1]
    assert all([call.stage for call in process.calls] == STAGES * 2 for process in processes)


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = run(tmp_path / "file", STEPS="2")
    assert (done.returncode, done.stdout) == (0, "step 0\nstep 1\n")
    assert done.stderr.count("harness capture:") == 1, done.stderr
    assert "the engine goes on: NotADirectoryError" in done.stderr


def test_a_full_disk_costs_one_warning(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/dev/full takes nothing; the index of the process leads there."""
    engine.capture(tmp_path / "first")
    writer = engine.session._writer
    assert writer is not None
    (writer.folder / "index.jsonl").unlink()
    (writer.folder / "index.jsonl").symlink_to("/dev/full")
    engine.session._warned.clear()
    engine.moe.flashinfer_cutedsl_moe_masked(**engine._loaded(0))
    engine.moe.flashinfer_cutedsl_moe_masked(**engine._loaded(0))
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert engine.session.idle


def killed(folder: Path, after: float) -> None:
    """Kill an engine that runs many steps, some time after its first."""
    path = os.pathsep.join((str(ROOT), str(ENGINE)))
    command = [
        sys.executable,
        "-m",
        "harness.capture",
        "--out",
        str(folder),
        "--",
        "python",
        str(ENGINE / "serve.py"),
    ]
    environment = {**os.environ, "PYTHONPATH": path, "STEPS": "100000"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def readable(folder: Path) -> Process:
    (process,) = read_capture(folder)
    for call in process.calls:
        assert call.inputs
        assert call.outputs
    return process


def test_a_killed_engine_leaves_a_capture_up_to_its_end(tmp_path: Path) -> None:
    killed(tmp_path, 0.2)
    assert len(readable(tmp_path).calls) >= 10


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_a_random_moment_is_as_good_as_another(seed: int, tmp_path: Path) -> None:
    killed(tmp_path, random.Random(seed).uniform(0.0, 0.6))
    readable(tmp_path)


def test_a_torn_line_is_said_and_what_comes_before_it_is_read(captured: Callable[..., Path]) -> None:
    folder = captured()
    index = next(folder.glob("*/index.jsonl"))
    text = index.read_text()
    index.write_text(text[:-40])
    process = readable(folder)
    assert len(process.calls) == 4
    assert "line 6 of" in process.torn
    assert "is torn" in process.torn


def test_a_function_of_another_signature_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "engine" / "flashinfer"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def scaled_fp4_grouped_quantize(a, permutation):\n    return a\n")
    code = "import flashinfer; print(flashinfer.scaled_fp4_grouped_quantize(7, None))"
    done = subprocess.run(
        [sys.executable, "-m", "harness.capture", "--out", str(tmp_path / "out"), "--", "python", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(package.parent)))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "7\n")
    assert "flashinfer.scaled_fp4_grouped_quantize is not captured" in done.stderr
    assert "has no parameter mask or masked_m" in done.stderr


def test_an_exception_of_the_engine_passes_and_the_next_call_is_captured(
    engine: Engine, tmp_path: Path
) -> None:
    engine.capture(tmp_path)
    arguments = engine._loaded(0)
    with pytest.raises(AttributeError):
        engine.moe.flashinfer_cutedsl_moe_masked(**{**arguments, "w1_alpha": None})
    engine.moe.flashinfer_cutedsl_moe_masked(**arguments)
    assert [call.stage for call in calls_of(tmp_path)][-5:] == STAGES


def test_a_call_inside_a_graphs_capture_is_left_out_with_one_reason(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph's capture may not be waited for, and nothing in it has run yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    recording = [True]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recording[0])
    engine.session._warned.clear()
    monkeypatch.setattr("harness.capture.writer._surroundings", dict)
    engine.capture(tmp_path, count=2)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.count("calls inside a CUDA graph's capture are not captured") == 1
    recording[0] = False
    engine.moe.flashinfer_cutedsl_moe_masked(**engine._loaded(0))
    assert len(list(tmp_path.glob("*/call-*"))) == 5, "the stages are what the graph was not"


def test_a_capture_is_read_by_what_its_documentation_says(captured: Callable[..., Path]) -> None:
    """docs/capture.md, "The format": json, safetensors and torch, and nothing of the harness."""
    from safetensors.torch import load_file

    folder = next(captured().glob("rank0-*"))
    header, *calls = map(json.loads, (folder / "index.jsonl").read_text().splitlines())
    assert (header["format"], header["version"], header["rank"]) == ("fp4-moe-harness capture", 1, 0)
    gemm = next(call for call in calls if call["stage"] == "masked_grouped_gemm")
    memory = load_file(folder / gemm["file"])[gemm["outputs"]["out"]["tensor"]]
    out = torch.as_strided(memory, gemm["outputs"]["out"]["shape"], gemm["outputs"]["out"]["stride"])
    weights = load_file(folder / gemm["inputs"]["b"]["weights"])["tensor"]
    assert (out.shape, out.dtype, weights.numel()) == ((10, 128, 3), torch.bfloat16, 3 * 128 * 64)
    assert bool(out[:10, :, 0].isfinite().all())


def test_an_engine_in_inference_mode_is_captured(engine: Engine, tmp_path: Path) -> None:
    with torch.inference_mode():
        engine.capture(tmp_path)
    assert [call.stage for call in calls_of(tmp_path)] == STAGES


def test_a_fused_layer_is_recorded_with_its_weights_once_and_by_layer(engine: Engine, tmp_path: Path) -> None:
    engine.capture(tmp_path, count=0)
    weights, out = [torch.full((2, 3), n, dtype=torch.uint8) for n in range(3)], torch.zeros(4)
    for first in (0, 1, 0):
        engine.flashinfer.cute_dsl_fused_moe(
            torch.ones(4), weights[first], w1_weight_sf=weights[2], moe_output=out
        )
    calls = calls_of(tmp_path)
    assert [call.layer for call in calls] == [0, 1, 0]
    assert len(list(tmp_path.glob("*/weights-*"))) == 3
    assert calls[1].inputs["quant_mode"] == "w4a4", "defaults are recorded"
    assert torch.equal(calls[1].inputs["w1_weight"], weights[1])
    assert torch.equal(calls[1].outputs["result"], torch.ones(4))


def test_a_capture_that_is_over_takes_its_taps_away(tmp_path: Path) -> None:
    code = (
        "import sys; import serve; import flashinfer.gemm, sglang.moe\n"
        "def tapped(): return [hasattr(f, '__harness_tapped__') for f in (flashinfer.gemm.grouped_gemm_nt_masked, "
        "sglang.moe.grouped_gemm_nt_masked, sglang.moe.flashinfer_cutedsl_moe_masked)]\n"
        "print(tapped()); serve.run(0); print(tapped(), any('harness.capture' in str(type(f)) for f in sys.meta_path))"
    )
    command = [
        sys.executable,
        "-m",
        "harness.capture",
        "--out",
        str(tmp_path),
        "--calls",
        "1",
        "--",
        "python",
        "-c",
        code,
    ]
    path = os.pathsep.join((str(ROOT), str(ENGINE)))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stdout.splitlines() == ["[True, True, True]", "step 0", "[False, False, False] False"], (
        done.stderr
    )
    assert len(calls_of(tmp_path)) == 5


def test_settings_travel_through_the_environment() -> None:
    settings = CaptureSettings("/folder", calls=3, every=2, layers=(1, 4))
    assert CaptureSettings.from_environment(settings.environment()) == settings
    assert CaptureSettings.from_environment({}) is None
    with pytest.raises(ValueError, match="unknown 'call'; known: calls, every"):
        CaptureSettings.from_environment(
            {"HARNESS_CAPTURE": "x", "HARNESS_CAPTURE_OPTIONS": json.dumps({"call": 1})}
        )
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got 0"):
        CaptureSettings("x", every=0)

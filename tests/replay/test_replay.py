"""Captured calls judged: healthy ones pass, a fault below the taps is found at its stage and named, by the command too."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import run
from harness.faults.fault import all_faults
from harness.faults.named import load_named
from harness.records.parts.replay import ReplayedCall
from harness.records.record import load_record
from harness.replay.reading import read_capture
from harness.replay.replay import replay
from harness.verdict import UsageError

FAULTS = (
    "alpha_of_neighbour", "alpha_dropped", "alpha_twice", "codes_truncated", "global_scale_inverted", "amax_of_half_block",
    "gate_and_up_swapped", "block_scale_too_low", "codes_all_zero", "nibbles_swapped", "accumulator_fp16",
    "global_scale_of_expert_0",
)  # fmt: skip
FAULTS = tuple(name for name in FAULTS if name in all_faults())


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the command writes into its current folder


def lines_of(folder: Path, **named: object) -> list[ReplayedCall]:
    return list(replay(read_capture(folder), **named))  # type: ignore[arg-type]


def failed(lines: list[ReplayedCall]) -> list[ReplayedCall]:
    return [line for line in lines if line.verdict == "FAIL"]


def test_a_healthy_engine_passes(captured: Callable[..., Path]) -> None:
    lines = lines_of(captured(count=2))
    assert [str(line.verdict) for line in lines] == ["PASS"] * 10
    errors = [line.error for line in lines if line.stage == "masked_grouped_gemm"]
    assert all(error is not None and 1e-4 < error < 3e-3 for error in errors), "bfloat16's rounding"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_below_the_taps_is_found_at_its_stage_and_named(
    captured: Callable[..., Path], name: str
) -> None:
    first = failed(lines_of(captured(name)))[0]
    fault = all_faults()[name]
    assert first.stage in fault.stages
    assert {name, *fault.same_as} & {one["fault"] for one in first.diagnosis}


def named(captured: Callable[..., Path], name: str) -> bool:
    wrong, fault = failed(lines_of(captured(name))), all_faults()[name]
    return bool(wrong) and bool({name, *fault.same_as} & {one["fault"] for one in wrong[0].diagnosis})


@pytest.mark.long
def test_most_faults_of_the_catalog_show_in_a_single_layer(captured: Callable[..., Path]) -> None:
    """The others need values, sizes or a history that one captured layer does not have."""
    inner = {"quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm"}
    traits = load_named("physical").traits
    faults = {name: fault for name, fault in all_faults().items() if not fault.unfit(traits)}
    names = [
        name
        for name, fault in faults.items()
        if inner & set(fault.stages) and set(fault.stages) <= {*inner, "prepare"}
    ]
    told = [name for name in names if named(captured, name)]
    assert len(told) >= 93, sorted(set(names) - set(told))


def test_a_candidate_is_judged_on_the_captured_inputs(captured: Callable[..., Path]) -> None:
    lines = lines_of(captured("alpha_of_neighbour"), candidate=load_named("eager"), name="eager")
    assert {line.verdict for line in lines if line.by == "eager"} == {"PASS"}
    assert [line.stage for line in failed(lines)] == ["masked_grouped_gemm"] * 2
    faulty = lines_of(captured(), candidate=load_named("physical+codes_truncated"), name="faulty")
    assert {line.stage for line in failed(faulty)} >= {"quantize_grouped"}
    assert {line.by for line in failed(faulty)} == {"faulty"}


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run(["replay", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_the_command_names_the_first_illegal_stage(
    captured: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = captured("gate_and_up_swapped", count=2)
    code, said = command(capsys, str(folder))
    assert code == 1
    assert "\nFAIL: first illegal: rank 0, layer 0, call 4, silu_mul_quantize_grouped: " in said
    run_of = load_record(Path("replay-run")).replay_run
    assert run_of is not None
    assert run_of.illegal[0].stage == "silu_mul_quantize_grouped"
    assert 'href="#illegal-1"' in Path("replay-run/report.html").read_text()
    code, said = command(capsys, str(folder), "--json")
    found = json.loads(said)
    assert (code, found["verdict"], len(found["calls"])) == (1, "FAIL", 10)


def test_a_healthy_capture_is_zero_and_no_capture_is_64(
    captured: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = command(capsys, str(captured()))
    assert code == 0
    assert "\nPASS: " in said
    code, said = command(capsys, str(tmp_path / "nothing"))
    assert code == 64
    assert "no capture: expected */index.jsonl" in said


def test_another_version_of_the_format_is_refused(captured: Callable[..., Path]) -> None:
    folder = captured()
    index = next(folder.glob("*/index.jsonl"))
    index.write_text(index.read_text().replace('"version": 1', '"version": 99', 1))
    with pytest.raises(UsageError, match="version 99 of the format; this harness reads 1"):
        read_capture(folder)


@pytest.mark.parametrize(
    "name",
    [
        "alpha_of_neighbour",
        pytest.param("codes_truncated", marks=pytest.mark.long),
        pytest.param("gate_and_up_swapped", marks=pytest.mark.long),
    ],
)
def test_an_exported_call_fails_alone_and_passes_with_a_right_kernel(
    captured: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file, script = tmp_path / "test_exported.py", tmp_path / "exported_script.py"
    code, said = command(capsys, str(captured(name)), "--export", str(file))
    assert code == 1
    assert f"exported: {file} and {script}, expert " in said
    assert max(file.stat().st_size, script.stat().st_size) < 100_000
    alone = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(file),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    failing = subprocess.run(
        alone, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert failing.returncode == 1, failing.stdout
    shown = {"alpha_of_neighbour": "alpha_dropped"}.get(name, name)  # one expert has no neighbour
    for candidate, ends in ((f"physical+{shown}", 1), ("physical", 0)):
        monkeypatch.setattr(sys, "argv", [str(script), candidate])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == ends
    monkeypatch.setenv("CANDIDATE", "physical")
    runpy.run_path(str(file))["test_the_captured_call_is_legal"]()


def test_a_healthy_capture_has_nothing_to_export(
    captured: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = command(capsys, str(captured()), "--export", str(tmp_path / "test_exported.py"))
    assert code == 64
    assert (
        "--export: no captured call of quantize_grouped, silu_mul_quantize_grouped, masked_grouped_gemm, routed_moe is illegal"
        in said
    )

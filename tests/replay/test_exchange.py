"""DeepEP's captured calls judged: against what all ranks sent, or against what the one captured rank sent itself."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.capture.settings import CaptureSettings
from harness.faults.fault import all_faults
from harness.faults.named import load_named
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.records.parts.replay import ReplayedCall
from harness.replay.reading import read_capture
from harness.replay.replay import replay
from tests.capture import conftest
from tests.capture.conftest import Engine

PROBLEM = parse_problem("6x12x256x64:12*6:normal:17")  # two ranks, 8 and 12 tokens, 3 experts each
OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"use_fp8": False},
    "fp8": {},
    "fp8-rounded": {"round_scale": True},
    "fp8-ue8m0": {"round_scale": True, "use_ue8m0": True},
    "nvfp4": {"use_fp8": False, "use_nvfp4": True},
}
FAULTS = {
    "token_lost": "bf16", "rows_one_off": "bf16", "empty_slots_sent": "bf16",
    "rank_offset_zero": "bf16", "fp8_scale_rounded_up": "fp8", "fp8_scale_of_neighbour": "fp8",
    "fp8_scales_of_first_row": "fp8", "nvfp4_dispatch_scale_inverted": "nvfp4",
    "nvfp4_dispatch_codes_by_logarithm": "nvfp4", "weights_dropped": "bf16", "weights_applied_twice": "bf16",
    "weights_of_next_slot": "bf16", "wrong_source_row": "bf16", "last_slot_left_out": "bf16",
    "empty_slots_counted": "bf16", "combine_in_bf16": "bf16",
}  # fmt: skip


@pytest.fixture(name="buffers")
def buffers_fixture(engine: Engine) -> Iterator[Any]:
    """DeepEP's stand-in, tapped by the engine's session."""
    with conftest.packages():
        module = importlib.import_module("deep_ep")
        conftest.hook._tap(engine.session, module)
        yield module


@pytest.fixture(name="exchanged")
def exchanged_fixture(engine: Engine, buffers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Capture a dispatch and a combine of every rank, with a fault in them."""

    def exchanged(
        fault: str = "", transport: str = "bf16", *, logfmt: bool = False, kernels: str = "eager", **more: Any
    ) -> Path:
        layer = LayerProblem(PROBLEM, load_named("eager").traits)
        x, ids, weights = layer.tokens(512), [i.clone() for i in layer.topk_idx], layer.topk_weights
        ids[0][::3, 0] = -1
        candidate = load_named(f"{kernels}+{fault}" if fault else kernels)
        world = buffers.World(candidate, x, ids, weights, layer.experts, layer.max_tokens)
        scale = layer.token_scale(x) if transport == "nvfp4" else None
        world.y = [  # LogFMT codes numbers below 1
            (torch.randn((*d.x.shape[:2], 512), generator=torch.Generator().manual_seed(r)) / 32).bfloat16()
            for r, d in enumerate(world.dispatched("bf16", None))
        ]
        for rank in range(layer.ranks):
            monkeypatch.setenv("RANK", str(rank))
            engine.session.settings, engine.session.idle = CaptureSettings(str(tmp_path / "cap")), False
            engine.session._begin_anew()
            buffer = buffers.Buffer(world, rank)
            named = {**OPTIONS[transport], **({"x_global_scale": scale} if scale is not None else {}), **more}
            got = buffer.low_latency_dispatch(x[rank], ids[rank], layer.max_tokens, layer.experts, **named)
            if got[-1] is not None:
                got[-1]()
            buffer.low_latency_combine(world.y[rank], ids[rank], weights[rank], got[2], use_logfmt=logfmt)
        return tmp_path / "cap"

    return exchanged


def lines_of(folder: Path) -> list[ReplayedCall]:
    return list(replay(read_capture(folder)))


@pytest.mark.parametrize("transport", OPTIONS)
def test_a_healthy_exchange_passes(exchanged: Callable[..., Path], transport: str) -> None:
    lines = lines_of(exchanged(transport=transport))
    assert len({line.rank for line in lines}) > 1
    assert {line.stage for line in lines} == {"dispatch", "combine"}
    assert {str(line.verdict) for line in lines} == {"PASS"}, [line.words for line in lines]
    assert all(line.compared > 500 for line in lines)


QUICK = ("token_lost", "fp8_scale_of_neighbour", "nvfp4_dispatch_scale_inverted", "weights_of_next_slot")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FAULTS]
)
def test_a_fault_is_found_at_its_stage_and_named(exchanged: Callable[..., Path], name: str) -> None:
    wrong = [line for line in lines_of(exchanged(name, FAULTS[name])) if line.verdict == "FAIL"]
    fault = all_faults()[name]
    assert wrong[0].stage in fault.stages
    named = {one["fault"] for line in wrong for one in line.diagnosis}
    assert {name, *fault.same_as} & named, named


def test_what_a_hook_brings_is_stored_once_it_has_run(exchanged: Callable[..., Path]) -> None:
    folder = exchanged(return_recv_hook=True)
    assert {str(line.verdict) for line in lines_of(folder)} == {"PASS"}
    for process in read_capture(folder):
        dispatch = next(call for call in process.calls if call.stage == "dispatch")
        assert int(dispatch.outputs["count"].sum()) > 0


def test_one_rank_alone_is_judged_by_its_own_tokens(exchanged: Callable[..., Path], tmp_path: Path) -> None:
    def alone(folder: Path) -> list[ReplayedCall]:
        for path in folder.glob("rank*"):
            if not path.name.startswith("rank1-"):
                shutil.rmtree(path)
        return lines_of(folder)

    lines = alone(exchanged(transport="fp8"))
    assert lines[0].verdict == "PASS"
    assert lines[0].compared > 100
    shutil.rmtree(tmp_path / "cap")
    lines = alone(exchanged("fp8_scale_of_neighbour", "fp8"))
    assert (lines[0].stage, str(lines[0].verdict)) == ("dispatch", "FAIL")


@pytest.mark.parametrize("kernels", ["eager", "physical"])
def test_rows_in_logfmt_are_judged_by_what_they_may_arrive_as(
    exchanged: Callable[..., Path], kernels: str
) -> None:
    combines = [line for line in lines_of(exchanged(logfmt=True, kernels=kernels)) if line.stage == "combine"]
    assert {str(line.verdict) for line in combines} == {"PASS"}, [line.words for line in combines]
    assert sum(line.compared for line in combines) == 20 * 512


def test_one_rank_alone_is_judged_in_logfmt_too(exchanged: Callable[..., Path]) -> None:
    folder = exchanged(logfmt=True)
    for path in folder.glob("rank0-*"):
        shutil.rmtree(path)
    (combined,) = (line for line in lines_of(folder) if line.stage == "combine")
    assert (combined.rank, str(combined.verdict)) == (1, "PASS"), combined.words


def test_sums_of_rows_that_were_not_in_logfmt_are_illegal_there(exchanged: Callable[..., Path]) -> None:
    """A combine that sends the rows as they are where LogFMT was asked for, or the other way round."""
    for asked in (True, False):
        folder = exchanged(logfmt=not asked)
        for process in read_capture(folder):
            index = process.folder / "index.jsonl"
            said, other = (f'"use_logfmt": {str(value).lower()}' for value in (not asked, asked))
            index.write_text(index.read_text().replace(said, other))
        combines = [line for line in lines_of(folder) if line.stage == "combine"]
        assert {str(line.verdict) for line in combines} == {"FAIL"}
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["weights_of_next_slot", "wrong_source_row"])
def test_a_fault_of_a_combine_in_logfmt_is_named(exchanged: Callable[..., Path], name: str) -> None:
    wrong = [line for line in lines_of(exchanged(name, logfmt=True)) if line.verdict == "FAIL"]
    assert {line.stage for line in wrong} == {"combine"}
    assert name in {one["fault"] for line in wrong for one in line.diagnosis}


@pytest.mark.long
def test_ranks_that_are_processes_are_captured_side_by_side(tmp_path: Path) -> None:
    """DeepEP's calls as the harness makes them, over gloo: each rank by itself, rows in another order in every call."""
    root = Path(__file__).parents[2]
    check = ["check", "--candidate", "on_cpu:OnCpu", "--rule", "DISPATCH", "--rule", "COMBINE", "--no-canary"]
    problem = ["--problem", "4x6x16x16:3*4:normal:57", "--out", str(tmp_path / "run")]
    capture = ["-m", "harness.capture", "--out", str(tmp_path / "cap"), "--", "python", "-m", "harness.cli"]
    path = os.pathsep.join((str(root), str(root / "tests/ranks/stand_in")))
    done = subprocess.run(
        [sys.executable, *capture, *check, *problem], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in lines_of(tmp_path / "cap") if line.stage in ("dispatch", "combine")]
    assert {line.rank for line in lines} == {0, 1}
    assert {line.stage for line in lines} == {"dispatch", "combine"}
    assert {str(line.verdict) for line in lines} == {"PASS"}

"""Marlin's fused layer, whose weights lie in the kernel's own order: captured as it is called, judged as routed_moe."""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.capture.settings import CaptureSettings
from harness.records.parts.replay import ReplayedCall
from harness.replay import marlin
from harness.replay.export import illegal
from harness.replay.judging import Judged
from harness.replay.reading import read_capture
from harness.replay.replay import export_first, replay
from reference.marlin_layout import BIAS, scales_to_marlin, to_marlin
from tests.capture import conftest
from tests.capture.conftest import Engine
from tests.capture.real.marlin import given_of
from tests.capture.test_real_marlin import illegal_in

Run = Callable[..., Path]


@pytest.fixture(name="run")
def run_fixture(engine: Engine, tmp_path: Path) -> Iterator[Run]:
    """Capture a call of the stand-in, with a fault below its launches, and arguments of a caller."""
    with conftest.packages():
        module = importlib.import_module("sglang.marlin")
        conftest.hook._tap(engine.session, module)

        def run(fault: str = "", form: str = "nvfp4", **named: Any) -> Path:
            given = given_of(form)
            stored = torch.float8_e4m3fn if form == "nvfp4" else torch.float8_e8m0fnu
            kind, alphas = "e4m3" if form == "nvfp4" else "e8m0", [given["w1_alpha"], given["w2_alpha"]]
            weights = [to_marlin(given[name]) for name in ("w1", "w2")]
            scales = [scales_to_marlin(given[f"{name}_scale"], kind).view(stored) for name in ("w1", "w2")]
            factors = [(alpha * BIAS).bfloat16() if form == "nvfp4" else None for alpha in alphas]
            engine.session.settings, engine.session.idle = CaptureSettings(str(tmp_path / "cap")), False
            engine.session._begin_anew()
            module.LAUNCHES.fault = fault
            arguments = {
                "w1_global_scale": factors[0], "w2_global_scale": factors[1], "num_bits": 4, "workspace": torch.zeros(9)
            }  # fmt: skip
            x = given["hidden_states"][0]
            module.fused_marlin_moe(
                x, *weights, *scales, None, given["topk_weights"], given["local"], **arguments | named
            )
            return tmp_path / "cap"

        yield run
    engine.session.idle = True


def line_of(folder: Path) -> ReplayedCall:
    (line,) = replay(read_capture(folder))
    return line


@pytest.mark.parametrize("named", [{"form": "nvfp4", "routed_scaling_factor": 2.5}, {"form": "mxfp4"}])
def test_a_layer_passes_and_its_weights_are_stored_once(run: Run, named: dict[str, Any]) -> None:
    folder = run(**named)
    line = line_of(folder)
    assert (line.stage, str(line.verdict), line.compared) == ("routed_moe", "PASS", 20 * 256), line.words
    assert line.error is not None
    assert 1e-4 < line.error < 0.02, "bfloat16's roundings"
    (process,) = read_capture(folder)
    assert len(list(process.folder.glob("weights-*"))) == 4
    assert "workspace" not in process.calls[0].line["inputs"]


def test_the_other_packages_rounding_of_factors_is_illegal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang rounds weight and factor and then their product, vLLM their product alone: each is held to its own."""
    folder = run()
    assert not illegal_in(folder)
    monkeypatch.setattr(marlin, "_OF_SGLANG", marlin._OF_VLLM)
    assert illegal_in(folder) > 100


def test_an_illegal_call_is_exported_as_its_kernel_rounds(run: Run, tmp_path: Path) -> None:
    processes = read_capture(run("routed_weights_dropped"))
    path = tmp_path / "test_marlin_call.py"
    export_first(processes, list(replay(processes)), path, "fast")
    kept = runpy.run_path(str(path))["CALL"]
    assert kept.rounding["accumulators"][1] == [8, "before alpha, alpha rounded to bfloat16", True, -119]
    assert illegal(kept, arithmetic="fast")


@pytest.mark.parametrize(
    "fault",
    [
        "routed_ids_off_by_one", "routed_weights_of_next_slot", "weight_scales_of_neighbour_expert.1",
        pytest.param("weight_nibbles_swapped.last", marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_what_the_layer_or_a_stage_inside_does_wrong_is_named(run: Run, fault: str) -> None:
    (found, *_) = line_of(run(fault)).diagnosis
    name, _, where = fault.partition(".")
    assert (found["fault"], found["explained"]) == (name, 1.0), found
    assert found["place"].startswith("tokens " if where == "last" else "everywhere"), found["place"]
    assert ("in the first GEMM" in found["place"]) == (where == "1"), found["place"]


def test_a_sum_that_is_not_scaled_is_illegal(run: Run) -> None:
    """The factor of the sum is an argument: a kernel that drops it is seen."""
    folder = run()
    index = next(folder.glob("*/index.jsonl"))
    index.write_text(
        index.read_text().replace('"routed_scaling_factor": null', '"routed_scaling_factor": 2.5')
    )
    assert illegal_in(folder) > 100


def test_parts_that_are_added_in_bfloat16_are_legal_where_the_device_adds_them_so(run: Run) -> None:
    (process,) = read_capture(run())
    (call,) = process.calls
    ways = [Judged.on(capability, "fast").of(call).ways for capability in (None, [8, 0], [9, 0])]
    assert [len(one) for one in ways] == [2, 2, 3]
    assert ways[2][2].bounds.summation is not None


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"w1_bias": torch.zeros(4, 256)}, "fused_marlin_moe with w1_bias: not judged yet"),
        ({"activation": "situ"}, "fused_marlin_moe with the activation situ: not judged yet"),
    ],
)
def test_what_has_no_rule_says_so(run: Run, named: dict[str, Any], words: str) -> None:
    line = line_of(run(**named))
    assert (str(line.verdict), line.words) == ("UNKNOWN", words)


def test_scales_that_cannot_be_read_back_leave_a_call_without_a_verdict(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = run(), marlin.scales_from_marlin

    def of_spoiled(stored: torch.Tensor, kind: str) -> torch.Tensor:
        spoiled = stored.clone()
        spoiled.view(torch.uint8)[0, 0, 0] = 255
        return read(spoiled, kind)

    monkeypatch.setattr(marlin, "scales_from_marlin", of_spoiled)
    line = line_of(folder)
    assert str(line.verdict) == "UNKNOWN"
    assert (
        line.words == "sglang.marlin.fused_marlin_moe: marlin: block scales must be numbers of E4M3, got nan"
    )

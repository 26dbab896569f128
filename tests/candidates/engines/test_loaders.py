"""`sglang-loader` and `vllm-loader`: the engines' installed code, judged, repaired, and with faults planted into it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.verdict import Verdict, exit_code
from tests.candidates.engines import planting
from tests.candidates.engines.found import ENGINES, ROOT, findings

pytestmark = pytest.mark.flashinfer

UP_OVER_GATE = "it is that of up_proj alone: gate_proj's input_scale is lost"
GATE_FOR_BOTH = "gate_proj's weight_scale_2 is used for up_proj too"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_runs_as_installed_and_what_was_stubbed_is_said(engine: str) -> None:
    found = findings(engine)
    assert found["support"] == [True, ""]
    assert f"{engine} " in found["warning"]
    stubbed = set(found["warning"].partition("stubbed: ")[2].partition(";")[0].split(", "))
    assert stubbed, "the test environment has the engines without their dependencies"
    assert not stubbed & {"torch", "numpy", "flashinfer", "pydantic", "transformers", engine}


def test_sglangs_two_scale_faults_are_found_placed_and_named() -> None:
    first, second = findings("sglang")["as installed"]
    assert "load.input_global_scale" in first["stages"]
    assert UP_OVER_GATE in first["messages"]
    assert "load.input_global_scale[expert 0, row 0, col 0]" in first["messages"]
    for each in (first, second):
        assert "load.input_global_scale (gate and up scales differ)" in each["stages"]
        assert UP_OVER_GATE in each["messages"]
        assert "load.w1 (gate and up scales differ)" in each["stages"]
        assert GATE_FOR_BOTH in each["messages"]
        assert "load.w1 (gate and up scales differ)[expert 0, row 128, col 0]" in each["messages"]
        assert "up_scale_2_ignored" in each["diagnosis"]
        assert "load.w2" not in each["stages"]


def test_sglang_gives_an_expert_that_is_there_twice_the_intermediate_scale_of_another() -> None:
    """Where slots hold other experts than slot modulo experts, as --init-expert-location has it."""
    found = findings("sglang")["as installed"]
    assert any("load.redundant" in each["stages"] for each in found)
    assert any("not the same: a2_global_scale, w2_alpha" in each["messages"] for each in found)


def test_sglang_passes_once_three_lines_are_repaired() -> None:
    found = findings("sglang")
    for each in found["repaired"]:
        assert (each["status"], each["stages"], each["error"]) == ("judged", [], "")
        assert each["judged"]["load.input_global_scale"] == {"one scale for all experts": 4}
        assert each["judged"]["load.a2_global_scale"] == {"each expert's own scale": 4}
        assert {"load.w2 (not gated)", "load.redundant"} <= set(each["judged"])


def test_vllms_right_code_passes_and_its_convention_is_said() -> None:
    for each in findings("vllm")["as installed"]:
        assert (each["status"], each["stages"], each["error"]) == ("judged", [], "")
        assert each["judged"]["load.input_global_scale"] == {"one scale for all experts": 4}
        assert each["judged"]["load.a2_global_scale"] == {"one scale for all experts": 4}
        refused = each["judged"]["load.w1 (gate and up scales differ)"]
        assert refused == {"refused: gate and up must have one weight_scale_2": 1}
        assert {"load.slices", "load.redundant"} <= set(each["judged"])


def test_sglang_loads_what_compressed_tensors_wrote_with_each_experts_own_scales() -> None:
    found = findings("sglang")
    assert found["compressed support"] == [True, ""]
    for each in found["compressed"]:
        assert (each["status"], each["stages"], each["error"]) == ("judged", [], "")
        assert each["judged"]["load.input_global_scale"] == {"each expert's own scale": 4}
        assert each["judged"]["load.a2_global_scale"] == {"each expert's own scale": 4}
        assert list(each["judged"]["load.w1 (gate and up scales differ)"]) == [
            "refused: gate and up must have one weight_scale_2"
        ]


def test_vllm_takes_the_largest_scale_of_the_ranks_own_experts_of_what_compressed_tensors_wrote() -> None:
    """On one rank all is right; a rank of several does not see the other ranks' input scales, as it does of ModelOpt's."""
    found = findings("vllm")
    assert found["compressed support"] == [True, ""]
    for each in found["compressed"]:
        assert each["stages"] == ["load.ranks"]
        assert "not the same: input_global_scale, w1_alpha, a2_global_scale, w2_alpha" in each["messages"]
        assert each["judged"]["load.input_global_scale"] == {"one scale for all experts": 4}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_layer_of_loaded_weights_is_right_on_one_rank_and_on_several(engine: str) -> None:
    for rule, each in findings(engine)["rules"].items():
        assert (each["status"], each["stages"], each["error"]) == ("judged", [], ""), rule
        assert each["judged"], rule


@pytest.mark.parametrize("engine", ENGINES)
def test_a_scale_that_is_missing_is_not_noticed_by_the_engine_and_is_found(engine: str) -> None:
    """As in vllm#45212: a slot that the checkpoint does not fill holds whatever was in that memory."""
    found = findings(engine)["incomplete"]
    assert found["stages"] == ["load.missing"]
    assert "the checkpoint has no experts." in found["messages"]
    assert "= nan" in found["messages"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_renamed_function_of_the_engine_is_no_support_and_named(engine: str) -> None:
    said = findings(engine)["renamed"]
    assert len(said) >= 10
    for target, reason in said.items():
        assert f"has no {target.rpartition(':')[2].rpartition('.')[2]}" in reason, target
        assert reason.endswith("this adapter does not know that version")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_newer_engine_is_unknown_with_the_name_and_never_a_trace(engine: str, tmp_path: Path) -> None:
    findings(engine)  # skips where it is not installed
    candidate = f"tests.candidates.engines.newer:{engine.title()}"
    ran = harness_check(tmp_path, "--candidate", candidate, "--rule", "LOAD")
    assert ran.returncode == exit_code(Verdict.UNKNOWN), ran.stdout + ran.stderr
    assert "has no process_weights_after_loading" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr


def test_sglangs_masked_moe_over_the_interpreted_cutedsl_kernels_passes_moe(tmp_path: Path) -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed; to run this: pip install --no-deps sglang")
    candidate = "harness.candidates.engines.sglang_loader:SglangOverCuteDsl"
    ran = harness_check(tmp_path, "--candidate", candidate, "--rule", "MOE", "--max-seconds", "8")
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "MOE         PASS" in ran.stderr
    assert "summation: sm_100 mxf4nvf4: gives every bit of the probes" in ran.stderr


def harness_check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run harness check without the canary."""
    command = [sys.executable, "-m", "harness.cli", "check", "--no-canary", "--out", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def said(found: dict[str, Any]) -> str:
    """Everything that is said of a failure."""
    return f"{found['messages']}\n{found.get('diagnosis', '')}\n{found['error']}"


@pytest.mark.parametrize("engine", ENGINES)
def test_every_fault_planted_into_the_engine_is_caught_and_most_are_named(engine: str) -> None:
    found, faults = findings(engine), getattr(planting, engine.upper())
    assert [what for what in faults if not found[what]["stages"] and not found[what]["error"]] == []
    named = {what: each.names for what, each in faults.items() if each.names}
    assert [what for what, names in named.items() if not any(n in said(found[what]) for n in names)] == []


def test_enough_faults_are_planted_and_named() -> None:
    faults = [*planting.SGLANG.values(), *planting.VLLM.values()]
    assert len(faults) >= 15
    assert sum(bool(each.names) for each in faults) >= 13

"""The engines' preparation for FlashInfer's fused layers: installed code, judged, repaired, and with faults planted into it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.candidates.engines.found import findings
from tests.candidates.engines.planting_fused import FUSED
from tests.candidates.engines.test_loaders import GATE_FOR_BOTH, UP_OVER_GATE

pytestmark = pytest.mark.flashinfer

LOADERS = list(FUSED)
READ_BACK = {
    "load.w1",
    "load.w2",
    "load.input_global_scale",
    "load.a2_global_scale",
    "load.ranks",
    "load.permuted",
}


def of(loader: str) -> dict[str, Any]:
    """Return what was found about a loader."""
    found: dict[str, Any] = findings("sglang" if loader.startswith("Sglang") else "vllm")[loader]
    return found


@pytest.mark.parametrize("loader", LOADERS)
def test_it_runs_as_installed_and_every_matrix_is_read_back(loader: str) -> None:
    assert of(loader)["support"] == [True, ""]
    for each in of(loader)["as installed"]:
        assert (each["status"], each["error"]) == ("judged", "")
        assert set(each["judged"]) >= READ_BACK
        assert not {"load.w1", "load.w2", "load.w1 (not gated)", "load.w2 (not gated)"} & set(each["stages"])


@pytest.mark.parametrize("loader", ["VllmTrtllmLoader", "VllmCuteDslLoader"])
def test_vllm_passes_also_where_it_pads(loader: str) -> None:
    assert len(of(loader)["as installed"]) == 3, "a hidden of 64 is padded to 256"
    for each in of(loader)["as installed"]:
        assert each["stages"] == []
        assert {"load.slices", "load.redundant"} & set(each["judged"])
        refused = each["judged"]["load.w1 (gate and up scales differ)"]
        assert refused == {"refused: gate and up must have one weight_scale_2": 1}


def test_sglang_gives_trtllm_two_alphas_where_gate_and_up_differ() -> None:
    """Its other loaders use gate's for both; gate's input_scale is lost here too."""
    for each in of("SglangTrtllmLoader")["as installed"]:
        assert "load.w1 (gate and up scales differ)" in each["judged"]
        assert "load.w1 (gate and up scales differ)" not in each["stages"]
        assert UP_OVER_GATE in each["messages"]


def test_sglangs_cutedsl_layer_uses_gates_scale_for_up_and_each_ranks_own_intermediate_scale() -> None:
    for each in of("SglangCuteDslLoader")["as installed"]:
        assert "load.w1 (gate and up scales differ)" in each["stages"]
        assert GATE_FOR_BOTH in each["messages"]
        assert "load.ranks" in each["stages"]
        assert "not the same: a2_global_scale, w2_alpha" in each["messages"]


@pytest.mark.parametrize("loader", LOADERS)
def test_once_repaired_it_passes(loader: str) -> None:
    for each in of(loader)["repaired"]:
        assert (each["status"], each["stages"], each["error"]) == ("judged", [], "")


@pytest.mark.parametrize("loader", LOADERS)
def test_every_fault_planted_into_the_new_order_of_rows_is_caught_and_most_are_named(loader: str) -> None:
    for what, planted in FUSED[loader].items():
        each = of(loader)[what]
        assert each["stages"] or each["error"], what
        said = f"{each['messages']}\n{each.get('diagnosis', '')}\n{each['error']}"
        assert not planted.names or any(name in said for name in planted.names), what


def test_enough_of_them_are_named() -> None:
    faults = [planted for each in FUSED.values() for planted in each.values()]
    assert sum(bool(planted.names) for planted in faults) >= 9


@pytest.mark.parametrize("loader", LOADERS)
def test_a_renamed_function_is_no_support_and_named(loader: str) -> None:
    said = of(loader)["renamed"]
    assert len(said) >= 6
    for target, reason in said.items():
        assert f"has no {target.rpartition(':')[2].rpartition('.')[2]}" in reason, target

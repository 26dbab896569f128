"""A layer of which only masked_moe can be called: faults of its stages are named from the final output alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.diagnosis import diagnose
from harness.faults.layer_calls import LoadedMoeCall
from harness.faults.named import plant
from harness.running.judge import Judge

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
try:
    from diagnosis_accuracy import FinalOutputOnly
    from diagnosis_outside import OUTSIDE
finally:
    sys.path.pop(0)

PROBLEM = "3x16x64x64:13,9,16:normal:5"
WIDE = "4x32x128x128:26,21,32,18:normal:5"  # a finding in rows of weights needs many of them


@pytest.fixture(autouse=True)
def _any_machine(monkeypatch):
    """A slow machine tests as many hypotheses as a fast one."""
    monkeypatch.setattr(diagnose, "MORE_SECONDS", 60.0)


def diagnosed(base: str, fault: str, *, probe: bool, rule: str = "MOE") -> list[dict[str, Any]]:
    judge = Judge(FinalOutputOnly(plant(base, fault)), probe=probe)
    outcome = judge.judge(rule, PROBLEM)
    assert outcome.status == "contract" or bool(outcome.illegal)
    return judge.diagnose(rule, PROBLEM, "")


@pytest.mark.parametrize(
    ("base", "fault"),
    [
        ("eager", "alpha_of_neighbour@3"),
        ("control:silu_with_fma", "codes_truncated@4"),  # in some of the blocks of some rows
        ("physical", "block_scale_too_low@9"),
        ("control:split_k_4", "rows_never_written@2"),
        ("eager", "output_tiles_transposed@6420"),  # values from other rows and columns
        ("control:codes_with_fma", "expert_pitch_without_padding@6420"),
        ("physical", "masked_m_of_neighbour@2"),
        ("control:split_k_4", "gate_up_interleaved@6160"),  # in some rows of the weights
        ("control:shuffled_accumulation", "nibbles_swapped_in_weights@5"),
    ],
)
def test_a_fault_of_a_stage_is_the_first_finding(base: str, fault: str, probe: bool) -> None:
    first = diagnosed(base, fault, probe=probe)[0]
    assert fault.partition("@")[0] in {first["fault"], *first.get("same_as", ())}
    assert first["explained"] > 0.9


@pytest.mark.parametrize("fault", ["tile_now_and_then_missing", "row_overwritten_now_and_then"])
def test_a_race_is_named(fault: str, probe: bool) -> None:
    first = diagnosed("physical", fault, probe=probe)[0]
    assert fault in {first["fault"], *first.get("same_as", ())}


def test_an_input_that_the_layer_changes_is_a_finding() -> None:
    first = diagnosed("eager", "alpha_folded_in_place", probe=True, rule="INPUTS")[0]
    assert first["fault"] == "alpha_folded_in_place"
    assert first["place"].startswith("the input w1_alpha and w2_alpha was changed")


def test_the_rows_of_the_weights_that_have_the_fault_are_found() -> None:
    """The last ten gate rows and one up row of one expert, in w1 alone."""
    from harness.faults.named import load_named

    class SomeRowsSwapped(FinalOutputOnly):
        def masked_moe(self, *arguments: Any, **named: Any) -> Any:
            call = LoadedMoeCall("masked_moe", self._inside.masked_moe, None, named)
            rows = torch.tensor([*range(118, 128), 130])
            for name in ("w1_codes", "w1_block_scale"):
                right = getattr(call, name)
                wrong = right.clone()
                wrong[2, rows] = right[2, (rows + 128) % 256]
                setattr(call, name, wrong)
            return call.result()

    judge = Judge(SomeRowsSwapped(load_named("physical")))
    first = judge.diagnose("MOE", WIDE, "")[0]
    assert "gate_up_swapped" in {first["fault"], *first.get("same_as", ())}
    assert "in w1: experts 2, weight rows 118 to 127 and 130" in first["place"]


@pytest.mark.parametrize(
    "name",
    [
        "ColumnsMirrored",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("OneAndAHalfStoredAsTwo", "MeanAdded")),
    ],
)
def test_a_fault_outside_the_catalog_is_not_explained_in_full(name: str) -> None:
    found = Judge(FinalOutputOnly(OUTSIDE[name][0]())).diagnose("MOE", PROBLEM, "")
    assert [f for f in found if not f["fault"]]
    assert sum(f["explained"] for f in found if not f.get("alternative")) < 0.5

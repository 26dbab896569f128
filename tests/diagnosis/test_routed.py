"""A wrong routed layer is explained by the fault that it has, from its calls alone, and a script repeats the call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.faults.named import load_named, plant
from harness.reproduction import plain
from harness.running.judge import Judge

PROBLEM = "v2:4x40x64x64:40,3,17,22:normal:1"
SHARDED = "v2:3x40x64x64:40,0,17:normal:1:sharded"
CASES = {
    "routed_up_for_gate": PROBLEM,
    "routed_ids_off_by_one": PROBLEM,
    "routed_offset_ignored": SHARDED,
    "routed_weight_elsewhere": PROBLEM,
    "routed_weights_twice@weakest": PROBLEM,
    "routed_slot_twice@3": PROBLEM,
    "routed_scale_of_next_token": PROBLEM,
    "routed_empty_slots_computed": SHARDED,
    "routed_output_not_cleared": PROBLEM,
    "routed_stale_weights": PROBLEM,
}
RULES = {"routed_output_not_cleared": "PAD-OUT", "routed_stale_weights": "EXPERTS"}


@pytest.mark.parametrize("planting", CASES)
def test_the_fault_is_named(planting: str) -> None:
    name = planting.partition("@")[0]
    judge = Judge(plant("physical", planting), threads=1, probe=False)
    rule = RULES.get(name, "ROUTED")
    outcome = judge.judge(rule, CASES[planting])
    assert outcome.illegal, outcome
    (found, *_) = judge.diagnose(rule, CASES[planting], "command")
    assert found["fault"] == name, found
    assert found["explained"] == 1.0


def test_a_dropped_limit_is_named_in_a_layer_that_has_one() -> None:
    judge = Judge(
        plant(load_named("control:physical_swigluoai"), "routed_limit_dropped"), threads=1, probe=False
    )
    problem = "v2:2x20x64x64:20,9:normal:4"
    assert judge.judge("ROUTED", problem).illegal
    assert judge.diagnose("ROUTED", problem, "command")[0]["fault"] == "routed_limit_dropped"


def test_a_script_repeats_the_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = plant("physical", "routed_weights_dropped")
    file = tmp_path / "calls.pt"
    judge = Judge(wrong, threads=1, probe=False)
    assert judge.keep_calls("ROUTED", PROBLEM, file, before_each=False) == ""
    assert plain.main(wrong, file, warm=False) == 1
    assert "routed_moe[token " in capsys.readouterr().out
    assert plain.main(load_named("physical"), file, warm=False) == 0
    kept = torch.load(file, weights_only=True)["calls"][-1]
    assert kept["stage"] == "routed_moe"
    assert kept["legal"]["low"].shape == (40, 64)

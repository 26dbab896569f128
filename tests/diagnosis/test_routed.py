"""A wrong routed layer is explained by the fault that it has, from its calls alone, and a script repeats the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.eager import EagerKernels
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


class AsMarlin(EagerKernels):
    """Holds weights as SGLang's Marlin does: factors as bfloat16 times 2^119, block scales without E4M3's subnormals."""

    def __init__(self) -> None:
        super().__init__(
            activation_format="bf16", deviations=("cast: before alpha, alpha rounded to bfloat16",)
        )

    def masked_grouped_gemm(
        self,
        a: Any,
        a_scale: Any,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Any,
        **rest: Any,
    ) -> None:
        byte = layouts.block_scales_of(b_scale, b.shape[0], 2 * b.shape[1] // 16)
        held = layouts.with_block_scale(b_scale, torch.where(byte < 8, 0, byte))
        factor = (alpha * 2.0**119).bfloat16().float() / 2.0**119
        super().masked_grouped_gemm(a, a_scale, b, held, out, masked_m, None, **rest)
        out.copy_(out.float() * factor)


@pytest.mark.parametrize(
    ("problem", "fault"),
    [
        ("v2:3x40x128x128:40,0,17:normal:1:small", "routed_large_alpha_infinite"),
        ("v2:3x40x64x64:40,0,17:normal:1:subnormal_scales", "routed_small_weight_scales_lost"),
    ],
)
def test_what_marlin_cannot_hold_is_named(problem: str, fault: str) -> None:
    """docs/found.md: factors of 512 and more, and block scales below 2^-6, with nothing declared."""
    judge = Judge(AsMarlin(), threads=1, probe=False)
    assert judge.judge("ROUTED", problem).illegal
    found = judge.diagnose("ROUTED", problem, "command")[0]
    assert found["fault"] == fault, found


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

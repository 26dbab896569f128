"""A layer that keeps the first GEMM's output in float32, and declares so, is diagnosed like any other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import Tensor

from harness.candidates.composition import compose_masked_moe
from harness.candidates.eager import Eager
from harness.faults.mutant import Mutant
from harness.faults.named import load_named
from harness.running.session import InProcess

PROBLEM = "3x24x128x96:24,9,17:normal:3"


class Fused(Eager):
    """SwiGLU on the float32 accumulators."""

    def __init__(self, unrounded: tuple[str, ...]) -> None:
        super().__init__()
        self.traits = dataclasses.replace(self.traits, unrounded=unrounded)

    def masked_moe(self, *positional: Any, **named: Any) -> Tensor:
        return compose_masked_moe(self, *positional, **named, unrounded=("gemm1",))


@pytest.mark.parametrize("fault", ["alpha_of_neighbour", "gate_and_up_swapped"])
def test_a_fault_in_a_fused_layer_is_found(fault: str) -> None:
    planted = load_named(f"eager+{fault}").plantings
    session = InProcess(Mutant(Fused(("gemm1",)), planted))
    assert session.judge("MOE", PROBLEM, 60).fails
    found = session.diagnose("MOE", PROBLEM, "harness diagnose", 120)
    assert found[0]["fault"] == fault, found
    assert found[0]["explained"] > 0.99


def test_without_a_fault_it_is_legal_as_declared_and_illegal_where_it_is_not() -> None:
    assert not InProcess(Fused(("gemm1",))).judge("MOE", PROBLEM, 60).fails
    assert InProcess(Fused(())).judge("MOE", PROBLEM, 60).fails

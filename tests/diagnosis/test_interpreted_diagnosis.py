"""Mistakes planted in the host arguments of FlashInfer's interpreted kernel: the suites catch them, the diagnosis names them."""

from __future__ import annotations

import pytest

from harness.faults.named import load_named
from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.rules import find_rules
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict

pytestmark = pytest.mark.flashinfer

PROBLEM = "2x128x128x64:100,37:normal:7"
FAULTS = (
    "alpha_of_neighbour@7",  # alpha's index
    "weight_scales_read_linear",  # layout of the scales
    "weight_scale_of_neighbour_row",
    "weights_of_neighbour_expert",  # B's expert offset
    "weight_nibbles_swapped",
    "scales_of_operands_exchanged",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_argument_of_the_real_kernel_is_caught_and_named(fault: str) -> None:
    candidate = load_named(f"flashinfer-cutedsl-cpu+{fault}")
    settings = RunSettings(PROFILES["quick"], candidate=f"flashinfer-cutedsl-cpu+{fault}")
    result = RuleRun(find_rules(["GEMM"])[0], InProcess(candidate), settings).repeat(parse_problem(PROBLEM))
    assert result.verdict is Verdict.FAIL
    first = result.failures[0].diagnosis[0]
    name = fault.partition("@")[0]
    assert name in {first["fault"], *first.get("same_as", [])}
    assert first["explained"] == 1.0

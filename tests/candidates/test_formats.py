"""Operands in other formats than NVFP4, end to end: right kernels pass, mistakes are caught and named, units are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.candidates import layouts
from harness.candidates.controls.catalog import load_control
from harness.candidates.controls.in_formats import ACTIVATIONS, FORMATS
from harness.candidates.eager import EagerKernels
from harness.diagnosis.diagnose import diagnose_problem
from harness.faults.named import plant
from harness.identification.measure import measure, measured
from harness.judging.context import Context
from harness.mutants.bench import Bench
from harness.mutants.false_alarms import count_false_alarms
from harness.problems.problem import parse_problem
from harness.rules import find_rules
from harness.running.judge import Watched, judge_context
from harness.running.outcome import Outcome
from harness.verdict import UsageError
from reference.formats import FORMATS as FORMS
from reference.matrix_units import Summation

QUICK = ("bf16", "fp8_token_with_mxfp4", "swigluoai")


def judged(candidate: Any, rule: str, problem: str) -> Outcome:
    known = measure(candidate).known
    return judge_context(find_rules([rule])[0], Context(Watched(candidate), parse_problem(problem), known))


def test_right_kernels_pass_every_rule() -> None:
    controls = [f"{kind}_{name}" for kind in ("eager", "physical") for name in QUICK]
    result = count_false_alarms(12 * len(controls), seed=5, controls=controls)
    assert result.false_alarms == []
    assert {"GEMM", "ACT", "PIPELINE", "MOE", "PAD-ROWS", "ISOLATION", "LAYOUT-IN"} <= set(result.rules)


@pytest.mark.long
@pytest.mark.parametrize("name", [*FORMATS, *ACTIVATIONS])
def test_right_kernels_pass_every_rule_at_length(name: str) -> None:
    result = count_false_alarms(400, seed=6, controls=[f"eager_{name}", f"physical_{name}"])
    assert result.false_alarms == []


PARTS = 4


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_rules_of_mxfp4_have_no_false_alarm_in_20000_examples(part: int) -> None:
    """MXFP4-1, MXFP4-2, MXFP4-3: weights and activations, in parts that workers share."""
    names = [name for name in FORMATS if "mxfp4" in name]
    controls = [f"{kind}_{name}" for name in names for kind in ("eager", "physical")]
    result = count_false_alarms(20_000 // PARTS, seed=100 + part, controls=controls)
    assert (result.false_alarms, result.examples) == ([], 20_000 // PARTS)


FEW = ("weights_of_neighbour_expert",)
MISTAKES = {
    "weights_of_neighbour_expert": "GEMM",
    "weight_scale_of_neighbour_block": "GEMM",
    "weight_nibbles_swapped": "GEMM",
    "cast_before_alpha": "GEMM",
    "gate_and_up_swapped": "ACT",
}
RULES = {"clamp_limit_dropped": "ACT", "gate_and_up_in_groups": "ACT"} | MISTAKES


@pytest.mark.parametrize(
    ("name", "faults"),
    [("bf16_swigluoai", (*FEW, "clamp_limit_dropped", "gate_and_up_in_groups"))]
    + [pytest.param(name, tuple(MISTAKES), marks=pytest.mark.long) for name in FORMATS],
)
def test_mistakes_are_caught_and_named(name: str, faults: tuple[str, ...]) -> None:
    control = f"physical_{name}"
    bench = Bench(f"control:{control}", "quick")
    for fault in faults:
        rule = RULES[fault]
        result = bench.judge(rule, [fault]).results[0]
        assert result.status == "killed", fault
        found = diagnose_problem(
            Watched(plant(load_control(control), fault)), bench.measured.known, rule, result.problem
        )
        assert fault in [each["fault"] for each in found], found


def test_faults_of_another_format_are_refused() -> None:
    with pytest.raises(UsageError, match="it is about nvfp4, and the candidate multiplies bf16 with nvfp4"):
        plant("control:physical_bf16", "block_scale_too_high")


class OfHopper(EagerKernels):
    """Multiplies activations with decoded weights as wgmma of an H100 does, and declares nothing of it."""

    def __init__(self, activations: str = "bf16", unit: str = "sm_90 f16") -> None:
        super().__init__(activation_format=activations, summation="", far=False)
        self.unit = Summation(unit)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        kind = self.form.element
        coded = layouts.loaded(self.form, (a, a_scale))
        weights = layouts.loaded(FORMS["nvfp4"], (b, b_scale))
        values, none = FORMS["nvfp4"].values(weights, torch.float64), torch.zeros(1, 0)
        for expert, rows in enumerate(masked_m.tolist()):
            left = self.unit.operand(self.form.values(coded, torch.float64)[expert, :rows], none, kind)
            product = self.unit.matmul(left, self.unit.operand(values[expert], none, kind))
            if coded.row_scale is not None:
                product = product * coded.row_scale[expert, :rows]
            out[:rows, :, expert] = (product if alpha is None else product * alpha[expert]).to(out.dtype)


def test_the_unit_of_bfloat16_operands_is_found_and_predicts_every_bit() -> None:
    """GEMM-3: no element of normal data is certified at k 2,048, and each has one value all the same."""
    candidate, problem = OfHopper(), "2x4x2048x64:4,3:normal:5:float32_out"
    assert str(measure(candidate).known.summation) == "sm_90 f16"
    outcome = judged(candidate, "GEMM", problem)
    assert outcome.illegal == []
    (counts,) = [c.judged for c in outcome.comparisons]
    assert counts["one value, predicted: sm_90 f16"] > 0.9 * sum(counts.values())
    exact = EagerKernels(activation_format="bf16")
    exact_outcome = judge_context(
        find_rules(["GEMM"])[0],
        Context(Watched(exact), parse_problem(problem), measure(candidate).known),
    )
    assert len(exact_outcome.illegal) == 1


@pytest.mark.parametrize("activations", ["fp8", pytest.param("fp8_token", marks=pytest.mark.long)])
def test_the_narrow_accumulator_of_fp8_operands_is_named(activations: str) -> None:
    """GEMM-3: an H100 keeps 13 fractional bits of FP8 products, and its bits are legal."""
    candidate = OfHopper(activations, "sm_90 f8")
    outcome = judged(candidate, "GEMM", "2x4x512x64:4,3:normal:5:float32_out")
    assert str(measured(candidate).known.summation) == "sm_90 f8"
    assert (outcome.illegal, outcome.comparisons[0].accepted_altered) == ([], [])


def test_grid_data_certify_every_element_of_bfloat16_activations() -> None:
    """GEMM-2: up to k 7,168."""
    outcome = judged(load_control("eager_bf16"), "GEMM", "1x4x7168x16:4:grid:5:float32_out")
    (only,) = outcome.comparisons[0].judged
    assert only.startswith("bit equality")

"""A mutant keeps its fault to the chosen part, repeats itself, and leaves the caller's tensors alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.candidates.traits import Traits
from harness.faults.bugs import all_bugs
from harness.faults.fault import Fault, all_faults
from harness.faults.named import load_named, plant
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.running.judge import Judge
from harness.verdict import UsageError

PROBLEM = "3x200x272x80:200,130,24:normal:4:subnormal_scales+e2m1_ties+negative_zero+zero_block"
STAGES = ("quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm")
FAULTS = {n: f for n, f in all_faults().items() if set(f.stages) & set(STAGES) and not f.unfit(Traits())}
KEPT = {name: f for name, f in FAULTS.items() if f.unit != "call"}
SHARED = Context(
    load_named("physical"), parse_problem(PROBLEM), Known.declared(load_named("physical").traits)
)


def outputs(candidate: object) -> dict[str, Tensor]:
    """Return every stage's valid rows as `(rows, blocks, bytes or values)`, one block of 16 for a quantizer."""
    ctx = Context(candidate, SHARED.problem, SHARED.known)
    ctx.tensors = t = SHARED.tensors
    rows, found = ctx.rows(), {}
    for name, quantized in (
        ("quantize_grouped", ctx.quantize(t.x, t.input_scale)),
        ("silu_mul_quantize_grouped", ctx.silu_mul_quantize(t.gate_up, t.a2_scale)),
    ):
        codes, scale = rows.take(quantized.codes), rows.take(quantized.block_scale)
        found[name] = torch.cat((codes.view(*scale.shape, 16), scale.unsqueeze(-1)), -1)
    gemm = rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha, fill=13.0))
    found["masked_grouped_gemm"] = gemm.view(torch.int16).unsqueeze(1)
    return found


HEALTHY = outputs(SHARED.candidate)


def changed(planting: str) -> dict[str, Tensor]:
    """Return which blocks of which rows a planted fault changes, `(rows, blocks)` bool a stage."""
    wrong = outputs(plant("physical", planting))
    return {stage: (wrong[stage] != HEALTHY[stage]).any(-1) for stage in HEALTHY}


@pytest.mark.parametrize("fault", KEPT.values(), ids=KEPT)
def test_the_weakest_fault_is_one_row_and_one_block_where_it_can_be(fault: Fault) -> None:
    found = changed(f"{fault.name}@weakest")
    if fault.unit == "block" and any(blocks.any() for blocks in changed(fault.name).values()):
        assert any(blocks.any() for blocks in found.values()), "nothing was planted"
    for stage, blocks in found.items():
        assert blocks.any(1).sum() <= (stage in fault.stages), stage
        if fault.unit == "block":
            assert blocks.sum() <= 1, stage


@pytest.mark.parametrize(
    "name", ["block_scale_too_high", "nibbles_swapped", "alpha_of_neighbour", "masked_m_minus_1"]
)
def test_a_seed_draws_places_within_those_of_the_whole_fault_and_repeats_them(name: str) -> None:
    everywhere = changed(name)
    drawn = [changed(f"{name}@{seed}") for seed in range(6)]
    again = changed(f"{name}@3")
    for stage, blocks in everywhere.items():
        assert torch.equal(again[stage], drawn[3][stage])
        if (
            name != "block_scale_too_high"
        ):  # there the strength is drawn too, and a weaker one may change other blocks
            assert not any((some[stage] & ~blocks).any() for some in drawn)
        if blocks.any():
            assert len({tuple(some[stage].flatten().tolist()) for some in drawn}) > 1
            assert all(some[stage].any() for some in drawn)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_leaves_the_callers_tensors_alone_unless_that_is_the_mistake(fault: Fault) -> None:
    judge = Judge(plant("physical", fault.name), threads=1, probe=False)
    found = judge.judge("INPUTS", "2x40x64x48:40,17:normal:1")
    changes_inputs = bool(found.illegal)
    assert changes_inputs == (fault.killed_by == "INPUTS"), found.comparisons


def test_faults_add_up_and_pass_through_the_composed_layer() -> None:
    t = SHARED.tensors
    double = plant("physical", "output_scaled", "output_scaled")
    assert double.name == "physical+output_scaled+output_scaled"
    ctx = Context(double, SHARED.problem, SHARED.known)
    ctx.tensors = t
    a = ctx.reference_operand()
    rows = ctx.rows()
    assert torch.equal(
        rows.take(ctx.gemm(a, t.w1, t.w1_alpha)), 4 * rows.take(SHARED.gemm(a, t.w1, t.w1_alpha))
    )
    plain = rows.take(SHARED.moe())
    for name in ("output_scaled", "gate_and_up_swapped", "global_scale_inverted", "last_k_tile_missing"):
        ctx.candidate = plant("physical", name)
        assert not torch.equal(rows.take(ctx.moe()), plain), name


def test_a_name_that_is_not_a_planting_says_what_would_be() -> None:
    for text, words in (
        ("alpha_of_neighbor", "did you mean 'alpha_of_neighbour'"),
        ("alpha_of_neighbour@", "after @ must come a seed"),
        ("alpha_of_neighbour@-1", "after @ must come a seed"),
        ("alpha_of_neighbour@strongest", "after @ must come a seed"),
    ):
        with pytest.raises(UsageError, match=words):
            plant("physical", text)


def test_a_fault_of_a_stage_that_a_candidate_lacks_is_refused() -> None:
    class QuantizesOnly:
        traits = load_named("physical").traits
        quantize_grouped = load_named("physical").quantize_grouped

    with pytest.raises(UsageError, match="masked_grouped_gemm, which QuantizesOnly"):
        plant(QuantizesOnly(), "alpha_of_neighbour")
    assert plant(QuantizesOnly(), "nibbles_swapped").name == "QuantizesOnly+nibbles_swapped"


def test_an_entry_without_faults_and_without_a_reason_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.faults import bugs

    entry = {"id": "A01", "thread": "flashinfer#1", "title": "", "class": "K01"}
    for more, words in (
        ([entry], "A01 must have faults, or a reason"),
        ([entry | {"faults": ["x"], "reason": "y"}], "A01 must have faults, or a reason"),
        ([entry | {"reason": "y"}] * 2, "A01 has two entries"),
    ):
        monkeypatch.setattr(bugs, "_read", lambda more=more: {"bug": more, "classes": {}})
        with pytest.raises(ValueError, match=words):
            all_bugs.__wrapped__()

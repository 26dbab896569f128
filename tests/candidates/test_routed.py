"""Routed layers: `eager` and `physical` against the definition, the controls, and masked_moe through routed_moe."""

from __future__ import annotations

import pytest
import torch

from harness.candidates import load_candidate, stages_of
from harness.candidates.controls.catalog import load_control
from harness.candidates.controls.routed_variants import ROUTED_HABITS
from harness.candidates.eager import Eager
from harness.candidates.through_routed import ThroughRouted, as_masked
from harness.candidates.traits import Traits
from harness.identification.measure import measure
from harness.judging.context import Context, Known
from harness.judging.routed import arguments
from harness.mutants.false_alarms import count_false_alarms
from harness.problems.problem import parse_problem
from harness.verdict import UsageError
from reference.final_sum import FinalSum
from reference.routed import routed_moe

PROBLEM = "v2:4x20x64x48:20,0,7,5:spread:3:sharded"


def context(candidate: object, problem: str = PROBLEM) -> Context:
    return Context(candidate, parse_problem(problem), Known.declared(candidate.traits))  # type: ignore[attr-defined]


def test_eager_is_the_definition() -> None:
    """ROUTED-1, ROUTED-2: what it composes of its own stages is what the reference says, bit for bit."""
    ctx = context(Eager())
    r, given = ctx.routed, arguments(ctx)
    assert r.offset > 0
    out = Eager().routed_moe(**given)
    assert out is given["out"]
    expected = routed_moe(
        r.x, r.topk_idx, r.topk_weights, r.input_scale, r.w1.codes, r.w1.block_scale, r.w1_alpha, r.w2.codes, r.a2_scale,
        r.w2.block_scale, r.w2_alpha, offset=r.offset,
    )  # fmt: skip
    assert torch.equal(out, expected)
    fresh = Eager().routed_moe(**(given | {"out": None}))
    assert torch.equal(fresh, expected)


@pytest.mark.parametrize("name", ["eager", "physical"])
def test_strides_ids_and_twice_are_taken_or_refused(name: str) -> None:
    candidate = load_candidate(name)
    given = arguments(context(candidate))
    ids = given["topk_idx"].clone()
    ids[0, :2] = given["local_expert_offset"]
    if name == "eager":
        with pytest.raises(ValueError, match="must be distinct"):
            candidate.routed_moe(**(given | {"topk_idx": ids}))
    else:
        assert candidate.routed_moe(**(given | {"topk_idx": ids})).isfinite().all()
        with pytest.raises(ValueError, match="must be contiguous"):
            candidate.routed_moe(**(given | {"topk_idx": given["topk_idx"].T.contiguous().T}))
    ids[0, 0] = given["num_experts"]
    with pytest.raises(ValueError, match=r"must lie in \[-1, "):
        candidate.routed_moe(
            **(
                given
                | {
                    "topk_idx": ids[:, :1].contiguous(),
                    "topk_weights": given["topk_weights"][:, :1].contiguous(),
                }
            )
        )
    with pytest.raises(ValueError, match="activation must be 'silu' or 'relu2'"):
        candidate.routed_moe(**(given | {"activation": "gelu"}))


def outputs(name: str) -> torch.Tensor:
    control = load_control(name)
    # Several calls: an order that differs from call to call need not show in one.
    return torch.stack([control.routed_moe(**arguments(context(control))) for _ in range(4)]).nan_to_num()


SAME_OUTPUTS = {
    "routed_slots_fma": "one float32 in many, which bfloat16 does not show",
    "routed_experts": "likewise",
    "routed_any": "likewise",
    "routed_atomic": "likewise",
    "routed_shuffled": "likewise",
    "routed_exact": "one code in many",
    "routed_unknown_reciprocals": "what the harness knows, and one code in many",
    "routed_stream_k": "tiles of more columns than this problem has",
}


@pytest.mark.parametrize(
    "name", [n for n, h in ROUTED_HABITS.items() if n not in SAME_OUTPUTS and n != "routed_slots"]
)
def test_a_control_adds_or_computes_otherwise(name: str) -> None:
    """A control that does what another one does would prove nothing."""
    traits = load_control(name).traits
    if traits.width_multiple > 16:
        return  # another format, or other rows of gate and up, are another layer
    assert not torch.equal(outputs(name), outputs("routed_slots"))


def test_no_right_layer_is_called_wrong() -> None:
    """ROUTED-2, ROUTED-3: some problems of some controls; the long count has thousands of all."""
    some = [name for name in ROUTED_HABITS if load_control(name).traits.gated != "silu"]
    some += ["routed_bf16", "routed_mxfp8", "routed_any_each_step"]
    found = count_false_alarms(10 * len(some), seed=19, controls=some)
    assert found.false_alarms == []
    assert found.examples == 10 * len(some)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_no_right_layer_is_called_wrong_in_20000_examples(part: int) -> None:
    """ROUTED-2, ROUTED-3: the same at length, in parts that workers share."""
    found = count_false_alarms(5_000, seed=1900 + part, controls=ROUTED_HABITS)
    assert found.false_alarms == []
    assert found.examples == 5_000
    assert {"ROUTED", "SLOTS", "PAD-ROWS", "PAD-OUT", "INPUTS", "LAYOUT-IN", "REPEAT"} <= set(found.rules)


def test_a_routed_layer_is_asked_as_a_masked_one() -> None:
    """What it computes inside is found out through masked_moe, whose rows are tokens of their own."""
    control = load_control("routed_any_each_step")
    masked = as_masked(control)
    assert isinstance(masked, ThroughRouted)
    assert stages_of(masked) == ["masked_moe"]
    assert as_masked(load_candidate("physical")).name == "physical"
    ctx = context(load_candidate("physical"), "v2:3x8x64x48:8,0,5:normal:2")
    given = ctx.moe_arguments((ctx.tensors.x, None))
    rows = ctx.rows()
    expected = rows.take(load_candidate("physical").masked_moe(**given))
    assert torch.equal(rows.take(masked.masked_moe(**given)), expected)
    pair = ctx.moe_arguments(ctx.reference_operand())
    assert torch.equal(
        rows.take(masked.masked_moe(**pair)), rows.take(load_candidate("physical").masked_moe(**pair))
    )


def test_the_sums_of_a_layer_that_declares_none_are_found() -> None:
    """Its summation is demanded bit for bit, though only routed_moe can be called."""
    control = load_control("routed_slots")
    control.traits = Traits(device="cpu", k_multiple=16, n_multiple=8, cuda_graph=False)
    found = measure(control)
    assert found.known.summation is not None
    assert "through masked_moe" in found.notes["summation"]


@pytest.mark.parametrize("text", ["atomic", "any; weight on nothing", 3])
def test_another_final_sum_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match='final_sum must be a text such as "slots"'):
        Traits(final_sum=text)  # type: ignore[arg-type]
    assert Traits(final_sum="any; rounded each step").sums_in_order is False
    assert Traits(final_sum="slots; weight on tokens").without_scales
    assert FinalSum.of(Traits().final_sum) == FinalSum()

"""Faults of routing, dispatch, combine and loading: where they are kept to, and what they do to a whole layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.eager import Eager
from harness.candidates.expert_parallel import ExpertParallel
from harness.candidates.layer_stages import KernelStages
from harness.candidates.protocol import LAYER_STAGES, stages_of, traits_of
from harness.faults.fault import Fault, all_faults
from harness.faults.named import load_named, plant
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.running.judge import Judge
from reference.routing import Dispatched

LAYER = {n: f for n, f in all_faults().items() if f.category in {"routing", "dispatch", "combine", "loading"}}
LOADING = {n: f for n, f in LAYER.items() if "masked_moe" in f.stages}
PROBLEM = parse_problem("8x24x128x64:24*8:normal:5")
# On one rank, local is global; here an up has the largest input scale. Without the checkpoint the other scales are not known.
SAME_HERE = ("local_input_scale", "input_scale_of_up")
MANY_ROWS = "8x24x512x64:24*8:normal:5:whole_layer"  # a code next to a threshold is one in two hundred
SHAPES = ("4x20x128x64:5,0,7,20:normal:0", "6x9x256x128:9*6:normal:1", "8x40x128x128:3*8:normal:2")

# Names that other parts refer to; a canary's table of accuracies is made of them.
FIXED = {
    "loading": (
        "input_scale_omitted", "input_scale_inverted", "alpha_without_input_scale", "scales_not_swizzled",
        "nibbles_swapped_in_weights", "experts_rolled", "gate_up_swapped", "scale_slots_zero", "scale_slots_stale",
        "experts_never_written", "one_expert_dropped", "local_input_scale", "alpha_of_gate_for_up",
    ),
    "routing": ("topk_map_divided_twice", "weights_not_normalized", "expert_offset_wrong"),
    "combine": (
        "weights_dropped", "weights_applied_twice", "combine_slot_off_by_one", "combine_in_bf16", "wrong_source_row",
    ),
    "dispatch": (
        "fp8_scale_rounded_up", "fp8_scale_of_neighbour", "token_lost", "token_duplicated", "rank_order_wrong",
        "nvfp4_dispatch_scale_inverted", "capacity_overflow_drops_last",
    ),
}  # fmt: skip


def layer(ranks: int = 2, topk: int = 2) -> LayerProblem:
    made = LayerProblem(PROBLEM, traits_of(load_named("eager")))
    made.ranks, made.counts, made.topk = ranks, [9] * ranks, topk
    return made


def illegal(candidate: Any, rule: str, problem: str) -> bool:
    outcome = Judge(candidate, threads=1, probe=False).judge(rule, problem)
    assert outcome.status == "judged", outcome
    return bool(outcome.illegal)


def test_names_that_others_refer_to_exist() -> None:
    for category, names in FIXED.items():
        assert [LAYER[name].category for name in names] == [category] * len(names)


@pytest.mark.parametrize("fault", LAYER.values(), ids=LAYER)
def test_every_seed_of_a_fault_is_killed_by_its_rule(fault: Fault) -> None:
    """tests/faults/test_catalog.py has everywhere and weakest; here drawn places and strengths, on small layers."""
    for seed in (11, 12):
        mutant = plant("control:rows_in_logfmt" if fault.needs else "physical", f"{fault.name}@{seed}")
        shapes = (*SHAPES, MANY_ROWS) if fault.needs else SHAPES
        assert any(illegal(mutant, fault.killed_by, problem) for problem in shapes), f"{fault.name}@{seed}"


def differing_rows(a: list[Dispatched], b: list[Dispatched]) -> int:
    count = 0
    for one, other in zip(a, b, strict=True):
        parts = [(one.x, other.x), (one.source, other.source)]
        if one.scales is not None and other.scales is not None:
            parts.append((one.scales, other.scales))
        rows = torch.zeros(one.x.shape[:2], dtype=torch.bool)
        for x, y in parts:
            rows |= (x.contiguous().view(torch.uint8) != y.contiguous().view(torch.uint8)).any(-1)
        count += int(rows.sum())
    return count


@pytest.mark.parametrize("name", ["topk_map_divided_twice", "fp8_scale_rounded_up", "rank_order_wrong"])
def test_a_weakest_fault_of_dispatch_is_one_row(name: str) -> None:
    made = layer()
    x = made.tokens(128)
    arguments = (x, made.topk_idx, made.experts, 9)
    transport = "fp8" if name.startswith("fp8") else "bf16"
    healthy = load_named("physical").dispatch(*arguments, transport=transport)
    everywhere = plant("physical", name).dispatch(*arguments, transport=transport)
    weakest = plant("physical", f"{name}@weakest").dispatch(*arguments, transport=transport)
    assert differing_rows(healthy, everywhere) > 4
    assert differing_rows(healthy, weakest) == 1


def test_a_weakest_fault_of_combine_is_one_token() -> None:
    made = layer()
    received = load_named("physical").dispatch(made.tokens(128), made.topk_idx, made.experts, 9)
    y = [torch.randn(got.x.shape).bfloat16() for got in received]
    arguments = (y, received, made.topk_idx, made.topk_weights)
    healthy = torch.cat(load_named("physical").combine(*arguments))
    weakest = torch.cat(plant("physical", "weights_applied_twice@weakest").combine(*arguments))
    everywhere = torch.cat(plant("physical", "weights_applied_twice").combine(*arguments))
    assert int((healthy != weakest).any(-1).sum()) == 1
    assert int((healthy != everywhere).any(-1).sum()) > 12


def changed_experts(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[int]:
    found: set[int] = set()
    for name, value in a.items():
        bytes_a, bytes_b = (t[name].contiguous().view(torch.uint8).view(len(value), -1) for t in (a, b))
        found |= set((bytes_a != bytes_b).any(-1).nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize("name", [n for n, f in LOADING.items() if f.unit != "call"])
def test_a_weakest_fault_of_loading_is_one_expert_and_changes_nothing_in_place(name: str) -> None:
    made = layer()
    checkpoint = made.checkpoint()
    before = {key: value.clone() for key, value in checkpoint.items()}
    healthy = load_named("eager").load_experts(checkpoint, range(8))
    loaded = plant("eager", f"{name}@weakest").load_experts(checkpoint, range(8))
    if name not in SAME_HERE:
        assert len(changed_experts(healthy, loaded)) == 1
    assert all(torch.equal(before[key], value) for key, value in checkpoint.items() if value.dim() == 0)
    assert all(
        torch.equal(before[key].view(torch.uint8), value.view(torch.uint8))
        for key, value in checkpoint.items()
        if value.dim()
    )


@pytest.mark.parametrize("name", LOADING)
def test_a_fault_of_loading_does_the_same_to_masked_moe_alone(name: str) -> None:
    """A candidate without load_experts: the fault changes masked_moe's weight arguments instead."""
    made = layer(ranks=1)
    checkpoint = made.checkpoint()
    kernels = KernelStages(load_named("eager"))
    assert not set(stages_of(kernels)) & set(LAYER_STAGES)
    x, ids, weights = made.tokens(made.hidden), made.topk_idx, made.topk_weights
    healthy = ExpertParallel(kernels, checkpoint)(x, ids, weights)[0]
    opaque = ExpertParallel(plant(kernels, name), checkpoint)(x, ids, weights)[0]
    whole = ExpertParallel(plant("eager", name), checkpoint)(x, ids, weights)[0]
    if name == "alphas_of_previous_load":
        return  # about a second load, see LOAD
    assert not torch.equal(healthy, opaque)
    if name not in SAME_HERE:
        assert torch.equal(opaque.view(torch.int16), whole.view(torch.int16))


def test_a_fault_of_loading_is_planted_in_one_place_only() -> None:
    """Swapped twice would be right again."""
    made = layer(ranks=1)
    checkpoint = made.checkpoint()
    mutant, healthy = plant("eager", "gate_up_swapped"), load_named("eager")
    arguments = (made.tokens(made.hidden), made.topk_idx, made.topk_weights)
    wrong = ExpertParallel(mutant, checkpoint)(*arguments)[0]
    assert not torch.equal(wrong, ExpertParallel(healthy, checkpoint)(*arguments)[0])
    half = ExpertParallel(KernelStages(healthy), checkpoint)
    half.shards = [mutant.load_experts(checkpoint, range(8))]
    assert torch.equal(wrong.view(torch.int16), half(*arguments)[0].view(torch.int16))


@pytest.mark.parametrize("name", ["rank_order_wrong", "local_input_scale", "experts_of_rank_0"])
def test_ranks_show_what_depends_on_them(name: str) -> None:
    """EP sees a fault that one rank does not have, in the layer's output alone."""

    class LoadsTheFirstExperts(Eager):
        def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
            return super().load_experts(checkpoint, range(len(experts)))

    mutant = LoadsTheFirstExperts() if name == "experts_of_rank_0" else plant("eager", name)
    assert any(illegal(mutant, "EP", f"8x24x128x64:24*8:normal:{seed}") for seed in range(6))


def test_faults_of_two_stages_at_once() -> None:
    mutant = plant("physical", "weights_dropped@3", "experts_rolled", "output_scaled@2")
    assert illegal(mutant, "COMBINE", SHAPES[2])
    assert illegal(mutant, "LOAD", SHAPES[2])
    assert not illegal(mutant, "ROUTE", SHAPES[2])
    assert not illegal(mutant, "DISPATCH", SHAPES[2])

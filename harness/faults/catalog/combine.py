"""Faults of combine: weights that are not applied, or twice; rows of other tokens; how the sum is rounded."""

from __future__ import annotations

import torch

from harness.faults.fault import Parameters, fault
from harness.faults.layer_calls import CombineCall
from reference.routing import NO_EXPERT

_STAGE = "combine"


@fault(category="combine", stages=_STAGE, bugs=("D01", "D22"), killed_by="COMBINE", effect="shift")
def weights_dropped(call: CombineCall, _: Parameters) -> None:
    """Routing weights are not applied: experts are added as they are."""
    call.topk_weights = [torch.ones_like(weights) for weights in call.topk_weights]
    call.run()


@fault(category="combine", stages=_STAGE, bugs=("D05",), killed_by="COMBINE", effect="shift")
def weights_applied_twice(call: CombineCall, _: Parameters) -> None:
    """Routing weights are applied by the experts and again in the sum: they enter squared."""
    call.topk_weights = [weights.square() for weights in call.topk_weights]
    call.run()


@fault(category="combine", stages=_STAGE, bugs=("D08", "D11"), killed_by="COMBINE", effect="shift")
def weights_of_next_slot(call: CombineCall, _: Parameters) -> None:
    """Each slot is weighted with the next slot's weight."""
    call.topk_weights = [weights.roll(-1, -1) for weights in call.topk_weights]
    call.run()


@fault(category="combine", stages=_STAGE, bugs=("A05", "D16"), killed_by="COMBINE", effect="collapse")
def combine_slot_off_by_one(call: CombineCall, _: Parameters) -> None:
    """Rows are read one place further in an expert's buffer; the last valid one is padding."""
    call.y = [y.roll(-1, 1) for y in call.y]
    call.run()


@fault(
    category="combine", stages=_STAGE, bugs=("F01", "F02"), killed_by="COMBINE", effect="collapse",
    simulated="a missing fence between two rows of one buffer: a row of the next token stands for the overwritten one",
)  # fmt: skip
def wrong_source_row(call: CombineCall, _: Parameters) -> None:
    """A token gets the sum of the next token of its rank."""
    call.run()
    call.outputs = [out.roll(-1, 0) if len(out) else out for out in call.outputs]


@fault(category="combine", stages=_STAGE, bugs=("D12", "D21"), killed_by="COMBINE", effect="shift")
def last_slot_left_out(call: CombineCall, _: Parameters) -> None:
    """The last slot of every token counts for nothing, as if its expert were on no rank."""
    changed = []
    for ids in call.topk_idx:
        fewer = ids.clone()
        fewer[:, -1] = NO_EXPERT
        changed.append(fewer)
    call.topk_idx = changed
    call.run()


@fault(category="combine", stages=_STAGE, bugs=("D14", "D15"), killed_by="COMBINE", effect="shift")
def empty_slots_counted(call: CombineCall, _: Parameters) -> None:
    """A slot of -1 indexes from the end: the first row of the last expert is added with that slot's weight."""
    call.run()
    row = call.y[-1][-1, 0].float()
    outputs = []
    for out, ids, weights in zip(call.outputs, call.topk_idx, call.topk_weights, strict=True):
        weight = weights.masked_fill(ids != NO_EXPERT, 0).sum(-1, keepdim=True)
        added = (out.float() + weight * row).to(out.dtype)
        outputs.append(torch.where(weight > 0, added, out))
    call.outputs = outputs


@fault(
    category="combine",
    stages=_STAGE,
    bugs=("D17",),
    killed_by="COMBINE",
    effect="shift",
    strengths=(8.0, 4.0, 2.0),
)
def reduced_twice(call: CombineCall, p: Parameters) -> None:
    """The sum over ranks is made twice: outputs are multiplied by the number of ranks."""
    call.run()
    call.outputs = [(out.float() * p.strength).to(out.dtype) for out in call.outputs]


@fault(category="combine", stages=_STAGE, bugs=("A22",), killed_by="COMBINE", effect="none")
def combine_in_bf16(call: CombineCall, _: Parameters) -> None:
    """The sum is kept in bfloat16: rounded after every slot instead of once."""
    slots = range(call.topk_idx[0].shape[1])
    ids = call.topk_idx
    total = None
    for slot in slots:
        call.topk_idx = [_only(i, slot) for i in ids]
        call.run()
        part = call.outputs
        total = (
            part
            if total is None
            else [(a.float() + b.float()).to(a.dtype) for a, b in zip(total, part, strict=True)]
        )
    call.topk_idx = ids
    if total is not None:
        call.outputs = total


def _only(ids: torch.Tensor, slot: int) -> torch.Tensor:
    kept = torch.full_like(ids, NO_EXPERT)
    kept[:, slot] = ids[:, slot]
    return kept


@fault(category="combine", stages=_STAGE, bugs=("F07",), killed_by="COMBINE", effect="none")
def tokens_without_expert_unwritten(call: CombineCall, _: Parameters) -> None:
    """Outputs of tokens without any expert are never written: they keep what the buffer held."""
    call.run()
    call.outputs = [
        out.masked_fill((ids == NO_EXPERT).all(-1, keepdim=True), torch.nan)
        for out, ids in zip(call.outputs, call.topk_idx, strict=True)
    ]

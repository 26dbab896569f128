"""Faults of a routed layer: ids, offsets and weights, slots and tokens, the activation that a fused kernel applies, its sum."""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.faults.arithmetic import overflowing
from harness.faults.fault import Parameters, fault
from harness.faults.layer_calls import linear_scales, with_linear_scales
from harness.faults.routed_call import WEIGHTS, RoutedCall
from reference.activations import INTERLEAVES
from reference.routed import NO_EXPERT

_STAGE = "routed_moe"
_TILE = 128
_NORMAL = 8  # E4M3 byte of 2^-6, the smallest normal number


@fault(
    category="routed", stages=_STAGE, bugs=("H01", "H04"), killed_by="ROUTED", effect="shift", needs="a limit"
)
def routed_limit_dropped(call: RoutedCall, _: Parameters) -> None:
    """The fused kernel gets no limit: neither gate nor up is clamped."""
    call.run_as(replace(call.way, limit=0.0))


@fault(
    category="routed", stages=_STAGE, bugs=("H03", "H04"), killed_by="ROUTED", effect="shift",
    needs="a factor in the sigmoid",
)  # fmt: skip
def routed_factor_dropped(call: RoutedCall, _: Parameters) -> None:
    """The fused kernel gets no factor for its sigmoid: silu with a factor of one."""
    call.run_as(replace(call.way, alpha=1.0))


@fault(
    category="routed",
    stages=_STAGE,
    bugs=("H03", "H04"),
    killed_by="ROUTED",
    effect="shift",
    needs="a bias of up",
)
def routed_beta_dropped(call: RoutedCall, _: Parameters) -> None:
    """The fused kernel gets no bias for up: 1 is not added to it."""
    call.run_as(replace(call.way, beta=0.0))


@fault(category="routed", stages=_STAGE, bugs=("C01", "C13", "C14"), killed_by="ROUTED", effect="collapse")
def routed_up_for_gate(call: RoutedCall, _: Parameters) -> None:
    """The fused kernel takes the rows of up for those of gate: weights lie the other way round."""
    call.run_as(replace(call.way, up_first=not call.way.up_first))


@fault(
    category="routed", stages=_STAGE, bugs=("C21", "B05"), killed_by="ROUTED", effect="collapse", strengths=(64, 16, 8),
)  # fmt: skip
def routed_interleave_mistaken(call: RoutedCall, p: Parameters) -> None:
    """Rows of gate and up take turns of another width (64, 16, 8) than the fused kernel reads."""
    inter = call.w2.shape[2] * 2
    width = p.strength if inter % p.strength == 0 else 8
    if width == call.way.interleave:
        width = next(other for other in INTERLEAVES if other != width)
    call.run_as(replace(call.way, interleave=width))


@fault(category="routed", stages=_STAGE, bugs=("D12", "D21"), killed_by="ROUTED", effect="collapse")
def routed_ids_off_by_one(call: RoutedCall, _: Parameters) -> None:
    """Every token goes to the expert after its own, the last one's to the first."""
    call.move_ids(torch.arange(call.local).roll(-1))
    call.run()


@fault(
    category="routed", stages=_STAGE, bugs=("D12",), killed_by="ROUTED", effect="collapse", random_data=False
)
def routed_offset_ignored(call: RoutedCall, _: Parameters) -> None:
    """The offset of this rank's experts is not passed on: ids are read as its own."""
    call.output = call.again(local_expert_offset=0)


@fault(category="routed", stages=_STAGE, bugs=("D23",), killed_by="ROUTED", effect="collapse")
def routed_logical_ids(call: RoutedCall, _: Parameters) -> None:
    """Ids are those before experts were brought into slots of another order: pairs of neighbours have changed places."""
    pairs = torch.arange(call.local).view(-1, 1)[: call.local // 2 * 2].view(-1, 2).flip(-1).flatten()
    call.move_ids(torch.cat((pairs, torch.arange(len(pairs), call.local))))
    call.run()


@fault(category="routed", stages=_STAGE, bugs=("D14", "D15"), killed_by="ROUTED", effect="shift")
def routed_empty_slots_computed(call: RoutedCall, _: Parameters) -> None:
    """A slot of -1 is an index from the end: the rank's last expert works on it, with that slot's weight."""
    last = torch.full_like(call.topk_idx.long(), call.local_expert_offset + call.local - 1)
    call.name_in_empty_slots(call.topk_idx == NO_EXPERT, last)
    call.run()


@fault(
    category="routed",
    stages=_STAGE,
    bugs=("D12", "D21"),
    killed_by="ROUTED",
    effect="shift",
    random_data=False,
)
def routed_others_experts_computed(call: RoutedCall, _: Parameters) -> None:
    """Slots of other ranks' experts are not left out: ids are taken modulo the experts of a rank."""
    ids = call.topk_idx.long()
    elsewhere = (ids != NO_EXPERT) & ~call.routes.there
    call.name_in_empty_slots(elsewhere, ids % call.local + call.local_expert_offset)
    call.run()


@fault(category="routed", stages=_STAGE, bugs=("D12", "D21"), killed_by="ROUTED", effect="shift")
def routed_last_slot_left_out(call: RoutedCall, _: Parameters) -> None:
    """The last slot of every token that counts is left out of the sum."""
    there = call.routes.there
    call.drop(there & (there.flip(-1).cumsum(-1).flip(-1) == 1))
    call.run()


@fault(category="routed", stages=_STAGE, bugs=("C19", "D16"), killed_by="ROUTED", effect="shift")
def routed_last_token_dropped(call: RoutedCall, _: Parameters) -> None:
    """The last token of each expert is dropped: rows are counted one too few."""
    routes, counts = call.routes, torch.tensor(call.routes.counts)
    last = routes.place == counts.to(routes.place.device)[routes.expert] - 1
    slots = torch.zeros_like(routes.there)
    slots[routes.token[last], routes.slot[last]] = True
    call.drop(slots)
    call.run()


@fault(category="routed", stages=_STAGE, bugs=("D01", "D22"), killed_by="ROUTED", effect="shift")
def routed_weights_dropped(call: RoutedCall, _: Parameters) -> None:
    """Routing weights are not applied: experts are added as they are."""
    call.topk_weights = torch.ones_like(call.topk_weights)
    call.run()


@fault(category="routed", stages=_STAGE, bugs=("D05",), killed_by="ROUTED", effect="shift")
def routed_weights_twice(call: RoutedCall, _: Parameters) -> None:
    """Routing weights are applied by the second GEMM and again in the sum: they enter squared."""
    call.topk_weights = call.topk_weights.square()
    call.run()


@fault(category="routed", stages=_STAGE, bugs=("D05", "D22"), killed_by="ROUTED", effect="none")
def routed_weight_elsewhere(call: RoutedCall, _: Parameters) -> None:
    """The weight enters before the intermediate is quantized instead of after the second GEMM, or the other way round."""
    way = call.final_sum
    call.run_as(final_sum=replace(way, weight="sum" if way.weight == "hidden" else "hidden"))


@fault(category="routed", stages=_STAGE, bugs=("D08", "D11"), killed_by="ROUTED", effect="shift")
def routed_weights_of_next_slot(call: RoutedCall, _: Parameters) -> None:
    """Rows are in the order of the slots, their weights one slot further."""
    call.topk_weights = call.topk_weights.roll(-1, -1)
    call.run()


@fault(category="routed", stages=_STAGE, bugs=("D17",), killed_by="ROUTED", effect="shift")
def routed_slot_twice(call: RoutedCall, _: Parameters) -> None:
    """The first slot of every token that counts is added twice."""
    there = call.routes.there
    first = there & (there.cumsum(-1) == 1)
    call.topk_weights = torch.where(first, call.topk_weights * 2, call.topk_weights)
    call.run()


@fault(
    category="routed", stages=_STAGE, bugs=("C12", "B06"), killed_by="ROUTED", effect="shift", needs="block scales",
)  # fmt: skip
def routed_scale_of_next_token(call: RoutedCall, _: Parameters) -> None:
    """Each token is decoded with the block scales of the next one."""
    codes, scale = call.quantized()
    rolled = scale.view(torch.uint8).roll(-1, 0).view(scale.dtype) if len(scale) else scale
    call.output = call.again(hidden_states=(codes, rolled), input_global_scale=None)


@fault(category="routed", stages=_STAGE, bugs=("F01", "C11"), killed_by="ROUTED", effect="collapse")
def routed_row_of_next_token(call: RoutedCall, _: Parameters) -> None:
    """Rows are gathered one place further: a token gets what the next one should."""
    call.run()
    call.output = call.output.roll(-1, 0) if len(call.output) else call.output


@fault(category="routed", stages=_STAGE, bugs=("A10", "B08", "B19"), killed_by="ROUTED", effect="shift")
def routed_a2_scale_of_expert_0(call: RoutedCall, _: Parameters) -> None:
    """The intermediate of all experts is quantized with the first one's encode scale; alphas are each expert's own."""
    first = call.a2_global_scale[:1].expand(call.a2_global_scale.shape)
    call.output = call.again(a2_global_scale=first.contiguous())


@fault(category="routed", stages=_STAGE, bugs=("G05",), killed_by="PAD-OUT", effect="collapse")
def routed_output_not_cleared(call: RoutedCall, _: Parameters) -> None:
    """The output is not cleared before rows are added into it: what it held is in the sum."""
    call.run()
    if call.out is not None:
        call.output = (call.output.float() + call.out.float()).to(call.output.dtype)


@fault(category="routed", stages=_STAGE, bugs=("F07",), killed_by="ROUTED", effect="none")
def routed_unserved_unwritten(call: RoutedCall, _: Parameters) -> None:
    """Tokens without an expert on this rank are never written: they keep what the buffer held."""
    call.run()
    unserved = ~call.routes.there.any(-1, keepdim=True)
    held = torch.nan if call.out is None else call.out
    call.output = torch.where(unserved, held, call.output)


@fault(category="routed", stages=_STAGE, bugs=("A22",), killed_by="ROUTED", effect="none")
def routed_sum_in_bf16(call: RoutedCall, _: Parameters) -> None:
    """The running sum is rounded to the output's type after every slot instead of once, or once instead of each time."""
    way = call.final_sum
    call.run_as(final_sum=replace(way, stepwise=not way.stepwise))


@fault(category="routed", stages=_STAGE, bugs=("G16",), killed_by="ROUTED", effect="collapse")
def routed_second_half_of_tiles_zero(call: RoutedCall, _: Parameters) -> None:
    """Rows 64 to 127 of each tile of an expert are zero: the second half of the block computes nothing."""
    routes = call.routes
    lost = routes.place % _TILE >= _TILE // 2
    slots = torch.zeros_like(routes.there)
    slots[routes.token[lost], routes.slot[lost]] = True
    call.drop(slots)
    call.run()


@fault(
    category="routed", stages=_STAGE, bugs=("B04", "B16"), killed_by="EXPERTS", effect="collapse", unit="call",
)  # fmt: skip
def routed_stale_weights(call: RoutedCall, p: Parameters) -> None:
    """Weights are prepared for the kernel once: those of the first call are used when experts have moved."""
    key = tuple(call.w1.shape), tuple(call.w2.shape)
    kept = p.state.setdefault(key, {name: getattr(call, name).clone() for name in WEIGHTS})
    call.output = call.again(**kept)


@fault(
    category="routed", stages=_STAGE, bugs=("E04",), killed_by="ROUTED", effect="none", unit="expert", random_data=False,
    needs="bf16",
)  # fmt: skip
def routed_large_alpha_infinite(call: RoutedCall, _: Parameters) -> None:
    """Factors of the experts pass through a format that ends before float32: from 2^-14 on they are infinite."""
    # In the kernel that it is modelled on from 512 on, which only traps reach.
    alphas = {name: overflowing(getattr(call, name), 2**-14) for name in ("w1_alpha", "w2_alpha")}
    call.output = call.again(**alphas)


@fault(
    category="routed", stages=_STAGE, bugs=("E13",), killed_by="ROUTED", effect="none", random_data=False,
    needs="weights in nvfp4",
)  # fmt: skip
def routed_small_weight_scales_lost(call: RoutedCall, _: Parameters) -> None:
    """Block scales of the weights below 2^-6, the E4M3 subnormals, are zero in the fused kernel's own format."""
    lost = {}
    for matrix in ("w1", "w2"):
        name = f"{matrix}_blockscale"
        scale = linear_scales(getattr(call, matrix), getattr(call, name))
        lost[name] = with_linear_scales(getattr(call, name), torch.where(scale < _NORMAL, 0, scale))
    call.output = call.again(**lost)

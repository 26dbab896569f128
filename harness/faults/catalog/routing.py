"""Faults of routing: which experts a token goes to, with which weights, and where its row is looked up."""

from __future__ import annotations

import torch

from harness.faults.fault import Parameters, fault
from harness.faults.layer_calls import DispatchCall, RouteCall

_ROUTE, _DISPATCH = "route_topk", "dispatch"


@fault(category="routing", stages=_DISPATCH, bugs=("C11",), killed_by="DISPATCH", effect="collapse")
def topk_map_divided_twice(call: DispatchCall, _: Parameters) -> None:
    """The map from rows to tokens is divided by top-k once more: row of token t holds token t // topk."""
    topk = call.topk_idx[0].shape[1]
    call.x = [x[torch.arange(len(x), device=x.device) // topk] for x in call.x]
    call.run()


@fault(
    category="routing",
    stages=_ROUTE,
    bugs=("D12", "D21"),
    killed_by="ROUTE",
    effect="collapse",
    strengths=("half", "one"),
)
def expert_offset_wrong(call: RouteCall, p: Parameters) -> None:
    """Expert numbers are counted from another rank's first expert: all are shifted by half of the experts, or by one."""
    call.run()
    experts = call.logits.shape[1]
    shift = max(1, experts // 2) if p.strength == "half" else 1
    call.topk_idx = (call.topk_idx + shift) % experts


@fault(category="routing", stages=_ROUTE, bugs=("D18", "D19"), killed_by="ROUTE", effect="collapse")
def negative_logits_misrouted(call: RouteCall, _: Parameters) -> None:
    """Where all logits are negative, other experts are chosen: lanes past the last expert count as zero."""
    call.run()
    experts = call.logits.shape[1]
    negative = call.logits.amax(-1) < 0
    # the padding lanes win, and their numbers are clamped into range
    wrong = torch.arange(experts - 1, experts - 1 - call.topk, -1, device=call.logits.device).expand_as(
        call.topk_idx
    )
    call.topk_idx = torch.where(negative.unsqueeze(-1), wrong, call.topk_idx)


@fault(category="routing", stages=_ROUTE, bugs=("D13",), killed_by="ROUTE", effect="collapse")
def topk_duplicates(call: RouteCall, _: Parameters) -> None:
    """Top-k picks the same expert for every slot."""
    call.run()
    call.topk_idx = call.topk_idx[:, :1].expand_as(call.topk_idx).contiguous()


@fault(category="routing", stages=_ROUTE, bugs=("D06", "D09"), killed_by="ROUTE", effect="shift")
def last_choice_wrong(call: RouteCall, _: Parameters) -> None:
    """The last of the chosen experts is the next one in order of logits."""
    call.run()
    if call.topk == call.logits.shape[1]:
        return
    ordered = call.logits.sort(-1, descending=True).indices
    last, following = ordered[:, call.topk - 1, None], ordered[:, call.topk, None]
    call.topk_idx = torch.where(call.topk_idx == last, following, call.topk_idx)


@fault(category="routing", stages=_ROUTE, bugs=("D08", "D10"), killed_by="ROUTE", effect="shift")
def weights_of_neighbour_slot(call: RouteCall, _: Parameters) -> None:
    """Every slot has the weight of the next one."""
    call.run()
    call.topk_weights = call.topk_weights.roll(-1, -1)


@fault(category="routing", stages=_ROUTE, bugs=("D09",), killed_by="ROUTE", effect="shift")
def weights_not_normalized(call: RouteCall, _: Parameters) -> None:
    """The chosen weights are not divided by their sum although that was asked for."""
    call.normalize = False
    call.run()


@fault(category="routing", stages=_ROUTE, bugs=("D09",), killed_by="ROUTE", effect="shift")
def weights_softmax_after_topk(call: RouteCall, _: Parameters) -> None:
    """Softmax runs over the chosen logits only, although it was to run over all of them."""
    call.normalize = True
    call.run()


@fault(
    category="routing", stages=_ROUTE, bugs=("D01", "D02", "D03", "D04"), killed_by="ROUTE", effect="shift",
    strengths=(2.5, 0.4, 1.1, 1.01),
)  # fmt: skip
def weights_scaled(call: RouteCall, p: Parameters) -> None:
    """The weights are off by a factor: a routed scaling factor is applied once too often, or not at all."""
    call.run()
    call.topk_weights = call.topk_weights * p.strength


@fault(category="routing", stages=_ROUTE, bugs=("D10",), killed_by="ROUTE", effect="none")
def weights_in_bf16(call: RouteCall, _: Parameters) -> None:
    """The weights are stored in bfloat16 and read as float32."""
    call.run()
    call.topk_weights = call.topk_weights.bfloat16().float()


@fault(
    category="routing", stages=_DISPATCH, bugs=("D23",), killed_by="DISPATCH", effect="collapse", unit="expert",
    simulated="the contract has no map of experts: tokens go where the expert of their number would be in turn over ranks",
)  # fmt: skip
def logical_ids_taken_for_physical(call: DispatchCall, _: Parameters) -> None:
    """Logical expert numbers are used where physical ones belong: tokens go to what lies in another expert's place."""
    ranks, device = max(len(call.topk_idx), 2), call.topk_idx[0].device
    logical = torch.arange(call.experts, device=device)
    physical = logical % ranks * (call.experts // ranks) + logical // ranks
    if call.experts % ranks or bool((physical == logical).all()):
        physical = logical.flip(0)
    call.topk_idx = [torch.where(ids < 0, ids, physical[ids.clamp(min=0)]) for ids in call.topk_idx]
    call.run()

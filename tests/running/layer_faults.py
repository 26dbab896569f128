"""Stages around the layer that are wrong from one extent on: the control with one result changed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates.eager import Eager
from reference.e4m3 import take
from reference.routing import Dispatched


@dataclass(frozen=True)
class LayerFault:
    """One fault.

    Attributes:
        rule: that catches it.
        extent: in which it is far.
        limit: from which on it is there.
        stage: whose result is changed.
        change: of route_topk's ids and weights, and of loaded weights by name, returns others; of combine's tokens of a rank
            and of the buffers of dispatch, the first expert's number and the transport's result, likewise.
    """

    rule: str
    extent: str
    limit: int
    stage: str
    change: Callable[..., Any]


class FarFault(Eager):
    """The control with a fault."""

    def __init__(self, fault: LayerFault) -> None:
        super().__init__()
        self.fault = fault

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        found = super().route_topk(logits, topk, normalize=normalize)
        return self.fault.change(*found) if self.fault.stage == "route_topk" else found

    def dispatch(self, x: list[Tensor], *positional: Any, **named: Any) -> list[Dispatched]:
        found = super().dispatch(x, *positional, **named)
        if self.fault.stage != "dispatch":
            return found
        first = [sum(len(got.masked_m) for got in found[:rank]) for rank in range(len(found))]
        return [self.fault.change(got, start) for got, start in zip(found, first, strict=True)]

    def combine(
        self,
        y: list[Tensor],
        dispatched: list[Dispatched],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
    ) -> list[Tensor]:
        if self.fault.stage == "topk_weights":
            topk_weights = [self.fault.change(w, ids) for w, ids in zip(topk_weights, topk_idx, strict=True)]
        found = super().combine(y, dispatched, topk_idx, topk_weights)
        if self.fault.stage != "combine":
            return found
        return [self.fault.change(tokens, y[0].shape[1], len(y)) for tokens in found]

    def load_experts(self, checkpoint: Any, experts: range) -> dict[str, Tensor]:
        found = super().load_experts(checkpoint, experts)
        return self.fault.change(found, experts) if self.fault.stage == "load_experts" else found


def _from_before(tokens: Tensor, limit: int) -> Tensor:
    """Return the rows, those from `limit` on replaced with the ones so many before."""
    return torch.cat((tokens[:limit], tokens[: max(len(tokens) - limit, 0)])) if limit else tokens


def _zero_from(limit: int, values: Tensor, axis: int) -> Tensor:
    changed = values.clone()
    as_bytes = changed.view(torch.uint8) if changed.dtype.itemsize == 1 else changed
    as_bytes.narrow(axis, min(limit, values.shape[axis]), max(values.shape[axis] - limit, 0)).zero_()
    return changed


def _loses_a_row(got: Dispatched, start: int) -> Dispatched:
    late = torch.arange(start, start + len(got.masked_m)) >= 192
    return replace(got, masked_m=got.masked_m - (late & (got.masked_m > 0)).int())


def _expert_before(loaded: dict[str, Tensor], experts: range, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the loaded weights, of the experts from 100 on those of the expert before."""
    source = [max(place - 1, 0) if expert >= 100 else place for place, expert in enumerate(experts)]
    return {name: take(value, source) if name in names else value for name, value in loaded.items()}


def _zero_loaded(loaded: dict[str, Tensor], name: str, limit: int, axis: int) -> dict[str, Tensor]:
    return {**loaded, name: _zero_from(limit, loaded[name], axis)}


FAULTS = {
    "route_tokens_wrap": LayerFault("ROUTE", "tokens", 1001, "route_topk", lambda ids, w: (_from_before(ids, 2048), _from_before(w, 2048))),
    "route_experts_wrap": LayerFault("ROUTE", "experts", 193, "route_topk", lambda ids, w: (torch.where(ids >= 192, ids - 192, ids), w)),
    "route_last_expert_is_lost": LayerFault("ROUTE", "experts", 256, "route_topk", lambda ids, w: (ids.clamp(max=254), w)),
    "dispatch_loses_a_row_of_late_experts": LayerFault("DISPATCH", "experts", 193, "dispatch", _loses_a_row),
    "dispatch_hidden_is_cut": LayerFault("DISPATCH", "hidden", 4097, "dispatch", lambda got, _: replace(got, x=_zero_from(4096, got.x, 2))),
    "dispatch_late_rows_are_not_written": LayerFault("DISPATCH", "rows", 2049, "dispatch", lambda got, _: replace(got, x=_zero_from(2048, got.x, 1))),
    "dispatch_tokens_wrap": LayerFault("DISPATCH", "tokens", 2049, "dispatch", lambda got, _: replace(got, source=torch.where(got.source >= 2048, got.source - 2048, got.source))),
    "dispatch_scales_of_a_large_capacity": LayerFault("DISPATCH", "capacity", 8192, "dispatch", lambda got, _: replace(got, scales=got.scales if got.scales is None or got.x.shape[1] < 8192 else _zero_from(0, got.scales, 2))),
    "combine_tokens_wrap": LayerFault("COMBINE", "tokens", 257, "combine", lambda tokens, *_: _from_before(tokens, 256)),
    "combine_hidden_is_cut": LayerFault("COMBINE", "hidden", 4097, "combine", lambda tokens, *_: _zero_from(4096, tokens, 1)),
    "combine_large_capacity_is_wrong": LayerFault("COMBINE", "capacity", 8192, "combine", lambda tokens, capacity, _: tokens * 0 if capacity >= 8192 else tokens),
    "combine_late_experts_count_for_nothing": LayerFault("COMBINE", "experts", 201, "topk_weights", lambda w, ids: w.masked_fill(ids >= 200, 0)),
    "load_late_experts_weights": LayerFault("LOAD", "experts", 101, "load_experts", lambda w, e: _expert_before(w, e, ("w1",))),
    "load_late_experts_alphas": LayerFault("LOAD", "experts", 101, "load_experts", lambda w, e: _expert_before(w, e, ("w2_alpha",))),
    "load_w1_columns_are_cut": LayerFault("LOAD", "hidden", 4097, "load_experts", lambda w, _: _zero_loaded(w, "w1", 2048, 2)),
    "load_w1_rows_are_cut": LayerFault("LOAD", "inter", 4097, "load_experts", lambda w, _: _zero_loaded(w, "w1", 8192, 1)),
    "load_w2_columns_are_cut": LayerFault("LOAD", "inter", 7153, "load_experts", lambda w, _: _zero_loaded(w, "w2", 3576, 2)),
    "load_w2_rows_are_cut": LayerFault("LOAD", "hidden", 4097, "load_experts", lambda w, _: _zero_loaded(w, "w2", 4096, 1)),
    "layer_of_many_ranks_and_tokens": LayerFault("EP", "tokens", 2049, "combine", lambda tokens, _, ranks: _zero_from(2048, tokens, 0) if ranks > 1 else tokens),
}  # fmt: skip

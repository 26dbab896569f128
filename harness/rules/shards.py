"""SHARDS: a routed layer over several ranks: some experts on each, a slice of every expert's width, or experts there twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates.expert_parallel import layer_stage, slice_of_width
from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.contract import checked
from harness.judging.layer_contract import checked_loaded
from harness.judging.routed import judge_call
from harness.problems.layer import LayerProblem
from harness.rules import NotApplicableError
from reference.routed import routes_of


@dataclass(frozen=True)
class _Rank:
    """What one rank is called with.

    Attributes:
        name: for messages and the record.
        loaded: masked_moe's weight arguments.
        ids: `(tokens, topk)` int32, of experts or slots.
        total: experts or slots of all ranks.
        offset: the first one here.
        alone: whether a token with all of its experts here has the bits of one rank.
    """

    name: str
    loaded: dict[str, Tensor]
    ids: Tensor
    total: int
    offset: int
    alone: bool = True


def shards(ctx: Context) -> list[Comparison]:
    """SHARDS: each rank's output is legal on what it holds, and a token that one rank serves has the bits of one rank."""
    layer = ctx.layer
    if (
        ctx.traits.formats != ("nvfp4", "nvfp4")
        or ctx.traits.power_scales
        or ctx.traits.gated != "silu"
        or "silu" not in ctx.traits.activations
    ):
        raise NotApplicableError(
            "checkpoints are of NVFP4 and SwiGLU, and the candidate computes something else"
        )
    if not sum(layer.counts):
        return [Comparison("routed layer")]
    most = 1 if "tokens" in ctx.traits.final_sum else ctx.traits.most_topk or layer.topk
    ids = torch.cat(layer.topk_idx)[:, :most].int()
    loaded = _loaded(ctx, layer.checkpoint(), range(layer.experts), layer.inter)
    if len(set(loaded["input_global_scale"].tolist())) > 1:
        raise NotApplicableError(
            "load_experts gives each expert an encode scale of the tokens: a routed layer takes one"
        )
    whole = _Rank("one rank", loaded, ids, layer.experts, 0)
    together, found = _output(ctx, layer, whole)
    for rank in _ranks(ctx, layer, ids):
        out, judged = _output(ctx, layer, rank)
        found += judged
        same = _served_here(rank, ids)
        if rank.alone and ctx.traits.sums_in_order and ctx.traits.place_invariant and bool(same.any()):
            rows = layer.token_rows().only(same)
            what = f"{rank.name} serves the token instead of one rank with all experts"
            found.append(compare_equal(f"routed layer, {rank.name}", out[same], together[same], rows, what))
    return found


def _served_here(rank: _Rank, ids: Tensor) -> Tensor:
    """Return which tokens have an expert, and all of theirs on this rank, `(tokens,)` bool."""
    there = routes_of(rank.ids, len(rank.loaded["w1"]), rank.offset).there
    return (there | (ids < 0)).all(-1) & there.any(-1)


def _ranks(ctx: Context, layer: LayerProblem, ids: Tensor) -> Iterator[_Rank]:
    """Yield every rank in each way of sharding that the problem allows."""
    checkpoint, experts, ranks = layer.checkpoint(), layer.experts, layer.ranks
    local = experts // ranks
    if ranks > 1:
        for rank in range(ranks):
            part = _loaded(ctx, checkpoint, range(rank * local, (rank + 1) * local), layer.inter)
            yield _Rank(f"rank {rank} of {ranks}", part, ids, experts, rank * local)
        yield from _redundant(ctx, layer, ids)
    half = layer.inter // 2
    if layer.inter % (2 * ctx.traits.width_multiple) == 0:
        cut = getattr(ctx.calls, "load_slice", None)
        for place in range(2):
            if cut is None:
                part = _loaded(ctx, slice_of_width(checkpoint, place, 2), range(experts), half)
            else:
                part = checked_loaded(
                    cut(dict(checkpoint), range(experts), place, 2), experts, layer, inter=half
                )
            yield _Rank(f"slice {place} of 2", part, ids, experts, 0, alone=False)


def _redundant(ctx: Context, layer: LayerProblem, ids: Tensor) -> Iterator[_Rank]:
    """Yield every rank of a layer with one expert more on each, in slots of an order of their own."""
    rng = random.Random(f"slots {layer.problem.seed}")
    experts, ranks = layer.experts, layer.ranks
    places = [*rng.sample(range(experts), experts), *rng.choices(range(experts), k=ranks)]
    load, place = getattr(ctx.calls, "load_redundant", None), getattr(ctx.calls, "place_topk", None)
    if load is not None:  # an engine may have its own places only
        places = [*range(experts), *[slot % experts for slot in range(ranks)]]
    local = len(places) // ranks
    slots = _slots(ids, places)
    for rank in range(ranks):
        here = range(rank * local, (rank + 1) * local)
        if load is not None:
            loaded = checked_loaded(load(dict(layer.checkpoint()), here, places), local, layer)
        else:
            each = [
                _loaded(ctx, layer.checkpoint(), range(places[s], places[s] + 1), layer.inter) for s in here
            ]
            loaded = {name: _joined([part[name] for part in each]) for name in each[0]}
        if place is not None:
            slots = next(iter(place(ids.long().clamp(min=0), places, rank, ranks).values())).int()
            slots = torch.where(ids < 0, ids, slots)
        yield _Rank(f"rank {rank} of {ranks}, experts there twice", loaded, slots, len(places), rank * local)


def _joined(parts: list[Tensor]) -> Tensor:
    as_bytes = [part.view(torch.uint8) if part.dtype == torch.float8_e4m3fn else part for part in parts]
    return torch.cat(as_bytes).view(parts[0].dtype)


def _slots(ids: Tensor, places: list[int]) -> Tensor:
    """Return slots that hold a token's experts, one and then the other where there are two, in the order of the tokens."""
    slots = ids.clone()
    for expert in set(places):
        held = [slot for slot, holds in enumerate(places) if holds == expert]
        token, slot = (ids == expert).nonzero(as_tuple=True)
        slots[token, slot] = torch.tensor(held, dtype=ids.dtype, device=ids.device)[token % len(held)]
    return slots


def _loaded(ctx: Context, checkpoint: dict[str, Tensor], experts: range, inter: int) -> dict[str, Tensor]:
    """Return what the candidate loads, or the reference where it loads nothing."""
    loaded = layer_stage(ctx.calls, "load_experts")(checkpoint, experts)
    return checked_loaded(loaded, len(experts), ctx.layer, inter=inter)


def _output(ctx: Context, layer: LayerProblem, rank: _Rank) -> tuple[Tensor, list[Comparison]]:
    """Call the layer as one rank does, and judge what comes out."""
    x, weights = torch.cat(layer.tokens(layer.hidden)), torch.cat(layer.topk_weights)
    loaded = dict(rank.loaded)
    scale = loaded.pop("input_global_scale")[:1].clone()
    if loaded["w1_alpha"].ndim == 2:
        raise NotApplicableError("load_experts gives gate and up an alpha each: a routed layer takes one")
    if ctx.traits.one_a2_scale and len(set(loaded["a2_global_scale"].tolist())) > 1:
        raise NotApplicableError("load_experts gives each expert an encode scale of the intermediate")
    given: dict[str, Any] = {
        "hidden_states": (x, None), "topk_idx": rank.ids, "topk_weights": weights[:, : rank.ids.shape[1]].contiguous(),
        "input_global_scale": scale, **loaded, "num_experts": rank.total, "local_expert_offset": rank.offset,
        "out": torch.full_like(x, torch.nan if not ctx.routed.way.onto else 0.0), "activation": "silu",
    }  # fmt: skip
    out = ctx.calls.routed_moe(**given)
    out = checked(out, "routed_moe", "", tuple(x.shape), x.dtype, ctx.traits.device, "(tokens, hidden)")
    return out, [judge_call(ctx, out, given, layer.token_rows(), f"routed layer, {rank.name}")]

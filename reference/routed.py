"""A routed layer: tokens, expert ids and routing weights in, tokens out; what every fused MoE kernel computes.

    row[token, slot] = masked_moe of the token by the expert of that slot
    output[token]    = sum over the token's slots of weight * row            (reference.final_sum, reference.routed_sum)

Expert ids are global. A rank holds the experts [offset, offset + local); slots of -1 and slots of other ranks' experts count
for nothing, so a token without an expert here is zero (or keeps what the output held, of a sum onto it). A token is quantized
once, so all experts share one encode scale of the input. The same expert twice in one token is refused.

Rules: ROUTED-1 (which experts count), ROUTED-2 and ROUTED-3 (the final sum).
Source: FlashInfer cute_dsl_fused_moe, trtllm_fp4_block_scale_routed_moe and cutlass_fused_moe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.final_sum import FinalSum
from reference.moe import masked_moe
from reference.routed_sum import RoutedSum

NO_EXPERT = -1


@dataclass(frozen=True)
class Routes:
    """Which rows a rank's experts work on: one for each slot whose expert is here, expert after expert.

    Attributes:
        there: `(tokens, topk)` bool, slots whose expert is on this rank.
        expert: `(rows,)` int64, the expert's place on this rank.
        token, slot: `(rows,)` int64, where the row comes from.
        place: `(rows,)` int64, the row's number within its expert, tokens in order.
        counts: rows of each expert.
    """

    there: Tensor
    expert: Tensor
    token: Tensor
    slot: Tensor
    place: Tensor
    counts: list[int]

    @property
    def most(self) -> int:
        """Rows of the expert that has most."""
        return max(self.counts, default=0)

    def spread(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Return `(rows, width)` by their slots, `(tokens, topk, width)`; `fill` where no expert is here."""
        found = rows.new_full((*self.there.shape, rows.shape[-1]), fill)
        found[self.token, self.slot] = rows
        return found


def routes_of(topk_idx: Tensor, local: int, offset: int = 0) -> Routes:
    """Return the rows of a rank's experts.

    Args:
        topk_idx: `(tokens, topk)` integer, global expert ids, -1 for none.
        local: experts on this rank.
        offset: global id of the first of them.

    Rule: ROUTED-1.
    """
    ids = topk_idx.long() - offset
    there = (topk_idx != NO_EXPERT) & (ids >= 0) & (ids < local)
    token, slot = there.nonzero(as_tuple=True)
    expert, order = ids[token, slot].sort(stable=True)
    counts = torch.bincount(expert, minlength=local)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(expert), device=topk_idx.device) - first[expert]
    return Routes(there, expert, token[order], slot[order], place, counts.tolist())


def require_distinct(topk_idx: Tensor) -> None:
    """Raise ValueError where a token names an expert twice."""
    ordered = topk_idx.long().sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_EXPERT)
    if bool(twice.any()):
        token = int(twice.any(-1).nonzero()[0])
        raise ValueError(
            f"routed_moe: the experts of a token must be distinct, got {topk_idx[token].tolist()} for token {token}"
        )


def routed_moe(
    x: Tensor,
    topk_idx: Tensor,
    topk_weights: Tensor,
    input_global_scale: Tensor,
    w1: Tensor,
    w1_blockscale: Tensor,
    w1_alpha: Tensor,
    w2: Tensor,
    a2_global_scale: Tensor,
    w2_blockscale: Tensor,
    w2_alpha: Tensor,
    offset: int = 0,
    activation: str = "silu",
    way: FinalSum | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the routed layer's output, the weight entering in the sum.

    Args:
        x: `(tokens, k)` bfloat16.
        topk_idx: `(tokens, topk)` integer global expert ids, distinct, -1 for none.
        topk_weights: `(tokens, topk)` float32.
        input_global_scale: `(1,)` float32 encode scale of all tokens.
        w1: `(experts, 2n, k)` codes; it and the others as reference.moe.masked_moe takes them, of this rank's experts.
        w1_blockscale: likewise.
        w1_alpha: likewise.
        w2: likewise.
        a2_global_scale: likewise.
        w2_blockscale: likewise.
        w2_alpha: likewise.
        offset: global id of this rank's first expert.
        activation: "silu" or "relu2".
        way: order and roundings of the final sum; None for one float32 sum over the slots in order.
        out: `(tokens, k)`, what the output held, for a sum onto it.

    Returns:
        `(tokens, k)` bfloat16.

    Raises:
        ValueError: the same expert twice; a weight that enters elsewhere; extents that do not fit.

    Rules: ROUTED-1, ROUTED-2.
    """
    way = way or FinalSum()
    if way.weight != "sum":
        raise ValueError(f"routed_moe: the weight must enter in the sum here, got weight on {way.weight}")
    require_distinct(topk_idx)
    local = len(w1)
    routes = routes_of(topk_idx, local, offset)
    grouped = x.new_zeros((local, max(routes.most, 1), x.shape[1]))
    grouped[routes.expert, routes.place] = x[routes.token]
    y = masked_moe(
        grouped, input_global_scale.expand(local), w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, torch.tensor(routes.counts), activation,
    )  # fmt: skip
    rows = routes.spread(y[routes.expert, routes.place])
    held = torch.zeros(x.shape, dtype=y.dtype) if out is None else out
    return RoutedSum(way, topk_weights, topk_idx, routes.there, held).total(rows)

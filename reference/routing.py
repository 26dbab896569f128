"""Expert-parallel routing over simulated ranks, in one process: dispatch, combine, and the top-k that feeds them.

Dispatch copies tokens to the ranks that own their experts: a permutation, compared bit for bit. Rows of one source rank
are contiguous within an expert; their order is free, which `source` makes comparable. Combine is a float32 sum over the
top-k slots in order, then one rounding, as DeepEP's low-latency combine does it.

Rules: ROUTE-1 (top-k), DISPATCH-1 (every token once at each of its experts), DISPATCH-2 (contiguous by source rank),
COMBINE-1 (order of the sum, one rounding), COMBINE-2 (slots without an expert count for nothing).
Source: DeepEP deep_ep/buffers/legacy.py, low_latency_dispatch and low_latency_combine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_EXPERT = -1  # a top-k slot that routes nowhere


@dataclass(frozen=True)
class Dispatched:
    """What the experts of one rank receive.

    Attributes:
        x: `(local experts, capacity, hidden)`, rows at or past `masked_m[e]` undefined (NaN here).
        masked_m: `(local experts,)` int32, rows received.
        source: `(local experts, capacity, 2)` int64: source rank and token of each row; -1 in padding.
    """

    x: Tensor
    masked_m: Tensor
    source: Tensor


def route_topk(logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Return the experts with the largest softmax weights, and those weights.

    Args:
        logits: `(tokens, experts)` floating point.
        topk: experts per token.
        normalize: divide the chosen weights by their sum.

    Returns:
        `(tokens, topk)` int64 expert ids and `(tokens, topk)` float32 weights, largest first.

    Raises:
        ValueError: topk outside [1, experts].

    Rule: ROUTE-1.
    """
    if not 1 <= topk <= logits.shape[-1]:
        raise ValueError(f"route_topk: topk must lie in [1, {logits.shape[-1]}], got {topk}")
    weights, experts = torch.softmax(logits.double(), dim=-1).topk(topk, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights.float()


def dispatch(x: list[Tensor], topk_idx: list[Tensor], experts: int, max_tokens: int) -> list[Dispatched]:
    """Send every token to the experts it is routed to.

    Args:
        x: per rank `(tokens, hidden)`, any dtype; bytes are moved as they are.
        topk_idx: per rank `(tokens, topk)` int64 global expert ids, -1 for none.
        experts: number of experts over all ranks, a multiple of the number of ranks; rank r owns
            `[r * experts / ranks, (r + 1) * experts / ranks)`.
        max_tokens: most tokens a rank may send; the capacity of an expert is ranks * max_tokens.

    Returns:
        One `Dispatched` per rank.

    Raises:
        ValueError: extents, ids or counts outside these limits.

    Rules: DISPATCH-1, DISPATCH-2.
    """
    ranks = len(x)
    if ranks == 0 or experts % ranks:
        raise ValueError(
            f"dispatch: experts must be a multiple of the number of ranks, got {experts} and {ranks}"
        )
    for rank, (tokens, ids) in enumerate(zip(x, topk_idx, strict=True)):
        if len(tokens) > max_tokens:
            raise ValueError(f"dispatch: rank {rank} sends {len(tokens)} tokens, max_tokens is {max_tokens}")
        if len(ids) != len(tokens):
            raise ValueError(
                f"dispatch: rank {rank} has {len(tokens)} tokens and {len(ids)} rows of topk_idx"
            )
        if ids.numel() and (int(ids.min()) < NO_EXPERT or int(ids.max()) >= experts):
            raise ValueError(
                f"dispatch: topk_idx must lie in [-1, {experts}), got rank {rank}: {ids.min()}..{ids.max()}"
            )
    local = experts // ranks
    return [
        _receive(x, topk_idx, range(r * local, (r + 1) * local), ranks * max_tokens) for r in range(ranks)
    ]


def _receive(x: list[Tensor], topk_idx: list[Tensor], owned: range, capacity: int) -> Dispatched:
    hidden = x[0].shape[1]
    poison = torch.nan if x[0].dtype.is_floating_point else 0xFF
    rows = torch.full((len(owned), capacity, hidden), poison, device=x[0].device).to(x[0].dtype)
    source = torch.full((len(owned), capacity, 2), -1, dtype=torch.int64, device=x[0].device)
    masked_m = torch.zeros(len(owned), dtype=torch.int32, device=x[0].device)
    for slot, expert in enumerate(owned):
        filled = 0
        for rank, (tokens, ids) in enumerate(zip(x, topk_idx, strict=True)):
            mine = (ids == expert).any(-1).nonzero().flatten()
            rows[slot, filled : filled + len(mine)] = tokens[mine]
            source[slot, filled : filled + len(mine), 0] = rank
            source[slot, filled : filled + len(mine), 1] = mine
            filled += len(mine)
        masked_m[slot] = filled
    return Dispatched(rows, masked_m, source)


def combine(
    y: list[Tensor], dispatched: list[Dispatched], topk_idx: list[Tensor], topk_weights: list[Tensor]
) -> list[Tensor]:
    """Bring the experts' rows back and sum them with the routing weights.

    Args:
        y: per rank `(local experts, capacity, hidden)` bfloat16, the experts' outputs.
        dispatched: what `dispatch` returned: it knows where each row came from.
        topk_idx: per rank `(tokens, topk)` int64.
        topk_weights: per rank `(tokens, topk)` float32.

    Returns:
        Per rank `(tokens, hidden)` of y's dtype: the float32 sum over slots 0, 1, ... of weight * row, rounded once. A
        token without any expert gives zeros.

    Rules: COMBINE-1, COMBINE-2.
    """
    local = y[0].shape[0]
    out = []
    for rank, (ids, weights) in enumerate(zip(topk_idx, topk_weights, strict=True)):
        total = torch.zeros((len(ids), y[0].shape[-1]), dtype=torch.float32, device=y[0].device)
        for slot in range(ids.shape[1]):
            for expert in sorted(set(ids[:, slot].tolist())):
                if expert == NO_EXPERT:
                    continue
                owner, place = divmod(expert, local)
                came_from = dispatched[owner].source[place]
                rows = (came_from[:, 0] == rank).nonzero().flatten()
                row_of_token = torch.full((len(ids),), -1, device=ids.device)
                row_of_token[came_from[rows, 1]] = rows
                tokens = (ids[:, slot] == expert).nonzero().flatten()
                total[tokens] += weights[tokens, slot, None] * y[owner][place, row_of_token[tokens]].float()
        out.append(total.to(y[0].dtype))
    return out

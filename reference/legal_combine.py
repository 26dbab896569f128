"""Which outputs of a combine are legal whose rows came back in LogFMT: between what the rows may have arrived as.

Rule: COMBINE-3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.logfmt import legal_logfmt
from reference.routing import NO_EXPERT, Dispatched, combine, rows_back

_UNIT = 2.0**-24  # of one float32 rounding
_LEAST = 2.0**-149


def legal_logfmt_combine(
    y: list[Tensor], dispatched: list[Dispatched], topk_idx: list[Tensor], topk_weights: list[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return the smallest and the largest legal output of each token, per rank two `(tokens, hidden)` of y's dtype.

    The sum is float32, over the slots in order: a rounding for each product and each addition. What is not finite is NaN or
    infinite in both.

    Args:
        y: per rank, as reference.routing.combine takes it; likewise the others.
        dispatched: where each row came from.
        topk_idx: experts of each token.
        topk_weights: their weights.

    Rule: COMBINE-3.
    """
    rows, places = rows_back(y, dispatched, topk_idx)
    low_rows, high_rows = legal_logfmt(rows)
    exact = [
        combine(y, dispatched, topk_idx, topk_weights, transport="logfmt", fused=fused)
        for fused in (False, True)
    ]
    found = []
    for rank, (ids, weights, place) in enumerate(zip(topk_idx, topk_weights, places, strict=True)):
        low, high, size = (torch.zeros(len(ids), rows.shape[1], device=ids.device).double() for _ in range(3))
        for slot in range(ids.shape[1]):
            weight = weights[:, slot, None].double()
            ends = [weight * part[place[:, slot]] for part in (low_rows, high_rows)]
            none = ids[:, slot, None] == NO_EXPERT
            low += torch.minimum(*ends).masked_fill(none, 0)
            high += torch.maximum(*ends).masked_fill(none, 0)
            size += torch.maximum(*(end.abs() for end in ends)).masked_fill(none, 0)
        roundings = ids.shape[1] + 1
        freedom = (size * (1.01 * roundings * _UNIT) + 2 * roundings * _LEAST).nan_to_num(0.0, posinf=0.0)
        known = low == high  # nothing is coded, or surely coded as zero
        one, other = exact[0][rank], exact[1][rank]
        found.append(
            (
                torch.where(known, torch.minimum(one, other), (low - freedom).to(one.dtype)),
                torch.where(known, torch.maximum(one, other), (high + freedom).to(one.dtype)),
            )
        )
    return found

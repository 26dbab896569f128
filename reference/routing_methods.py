"""How a fused layer chooses experts and weights from router logits: FlashInfer's RoutingMethodType, by definition.

| method | an expert's score | weight of a chosen one |
|---|---|---|
| default | softmax over all experts | its score |
| renormalize | logit | softmax over the chosen ones |
| topk | logit | logit |
| topk_sigmoid, llama4 (one expert) | logit | sigmoid of the logit |
| sigmoid | sigmoid | its score |
| sigmoid_renorm | sigmoid | its score over the sum of the chosen ones |
| deepseek_v3, minimax2 | sigmoid + bias | sigmoid over the sum of the chosen ones, times a factor |

With groups (deepseek_v3) only experts of the best groups are chosen from; a group's score is the sum of its two largest.
renormalize_naive, softmax first, is renormalize. Weights are rounded to bfloat16.

A choice is known where the arithmetic of a kernel cannot change it: logits are compared as they are, so that only equal ones
leave it open; sigmoids, softmax and sums are float32, and scores nearer than `FREEDOM` to each other leave it open. A weight is
known where float32 arithmetic cannot change its bfloat16.

Rule: ROUTED-4.
Source: FlashInfer tllm_enums.py (RoutingMethodType); csrc/fused_moe/trtllm_backend, trtllm_fused_moe_routing_runner.cu;
include/flashinfer/trtllm/fused_moe/RoutingCustomPolicy.cuh.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = (
    "default", "renormalize", "topk", "topk_sigmoid", "llama4", "sigmoid", "sigmoid_renorm", "deepseek_v3", "minimax2",
)  # fmt: skip
FREEDOM = 2.0**-19
"""How far float32 may be off a sigmoid, a softmax and sums of them, each at most 1: 2^5 units; a bias adds its own."""
_LEAST_EXPONENT = 80.0
_COMPARED_AS_LOGITS = ("renormalize", "topk", "topk_sigmoid", "llama4")
BIASED = ("deepseek_v3", "minimax2")
"""Methods that a bias belongs to."""


@dataclass(frozen=True)
class Routing:
    """How a layer routes.

    Attributes:
        method: one of METHODS.
        topk: experts of a token.
        groups: that experts are divided into, 0 or 1 for none; `topk_groups` of them are chosen from.
        factor: of the weights, where the method has one.
        normalized: whether sigmoid_renorm divides by the sum.
    """

    method: str
    topk: int
    groups: int = 0
    topk_groups: int = 0
    factor: float = 1.0
    normalized: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"routing: method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if self.topk < 1 or (self.method == "llama4" and self.topk != 1):
            raise ValueError(
                f"routing: topk must be at least 1, and 1 for llama4, got {self.topk} for {self.method}"
            )


@dataclass(frozen=True)
class Chosen:
    """What tokens are routed to.

    Attributes:
        topk_idx: `(tokens, topk)` int64, the largest score first.
        topk_weights: `(tokens, topk)` float32, values of bfloat16.
        known: `(tokens,)` bool: no kernel's arithmetic gives others.
    """

    topk_idx: Tensor
    topk_weights: Tensor
    known: Tensor


def choose(logits: Tensor, bias: Tensor | None, routing: Routing) -> Chosen:
    """Return the experts of each token and their weights.

    Args:
        logits: `(tokens, experts)` bfloat16 or float32.
        bias: `(experts,)`, of a method that has one; None for none.
        routing: how.

    Raises:
        ValueError: fewer experts than are to be chosen; experts that are no multiple of the groups.

    Rule: ROUTED-4.
    """
    experts = logits.shape[1]
    if routing.topk > experts or (routing.groups > 1 and experts % routing.groups):
        raise ValueError(
            f"routing: {routing.topk} of {experts} experts in {max(routing.groups, 1)} groups cannot be chosen"
        )
    exact = logits.double()
    scores, freedom = _scores(exact, bias, routing)
    known = ~exact.isnan().any(-1)
    if routing.method == "deepseek_v3" and routing.groups > 1:
        scores, sure = _of_best_groups(scores, freedom, routing)
        known &= sure
    best = scores.sort(dim=-1, descending=True, stable=True)
    ids = best.indices[:, : routing.topk]
    if routing.topk < experts:
        known &= best.values[:, routing.topk - 1] - best.values[:, routing.topk] > freedom
    if routing.method == "default":  # below that, exponentials are zero, and equal
        known &= best.values[:, 0] - best.values[:, routing.topk - 1] < _LEAST_EXPONENT
    weights, apart = _weights(exact, ids, routing), _weight_freedom(exact, ids, routing)
    low, high = ((weights * (1 + sign * apart)).float().bfloat16() for sign in (-1, 1))
    known &= (low == high).all(-1)
    return Chosen(ids, weights.float().bfloat16().float(), known)


def _scores(exact: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, float]:
    """Return by what experts are compared, `(tokens, experts)` float64, and how far a kernel's may be off."""
    if routing.method in _COMPARED_AS_LOGITS:
        return exact, 0.0
    if routing.method == "default":
        return exact, _logits_apart(exact) if exact.numel() else 0.0
    scores = exact.sigmoid()
    if routing.method in BIASED and bias is not None:
        scores = scores + bias.double()
        return scores, FREEDOM * (1 + float(bias.double().abs().max()))
    return scores, FREEDOM


def _logits_apart(exact: Tensor) -> float:
    """Return how far logits must be apart for float32's softmax to tell them: docs/bounds.md, "Routing"."""
    span = float((exact.amax(-1) - exact.amin(-1)).max())
    return (3 + 1.7 * span) * 2.0**-22


def _weight_freedom(exact: Tensor, ids: Tensor, routing: Routing) -> Tensor:
    """Return how far a kernel's float32 may be off each weight, relative to it, `(tokens, topk)` float64."""
    chosen = exact.gather(-1, ids)
    if routing.method in (
        "default",
        "renormalize",
    ):  # exp errs by 2 + 1.173 |x| units; it is summed and divided
        below = exact.amax(-1, keepdim=True) - chosen
        return (20 + 2 * below) * 2.0**-23
    if routing.method == "topk":
        return torch.zeros_like(chosen)
    return FREEDOM + 2.0**-23 / chosen.sigmoid()  # half a tangent and a half: small ones err as large ones do


def _of_best_groups(scores: Tensor, freedom: float, routing: Routing) -> tuple[Tensor, Tensor]:
    """Return scores with those of other groups at minus infinity, and for which tokens the groups are known."""
    grouped = scores.unflatten(-1, (routing.groups, -1))  # type: ignore[no-untyped-call]
    of_groups = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    best = of_groups.sort(dim=-1, descending=True, stable=True)
    taken = torch.zeros_like(of_groups, dtype=torch.bool)
    taken.scatter_(-1, best.indices[:, : routing.topk_groups], value=True)
    sure = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    if routing.topk_groups < routing.groups:
        apart = best.values[:, routing.topk_groups - 1] - best.values[:, routing.topk_groups]
        sure = apart > 2 * freedom
    return grouped.masked_fill(~taken.unsqueeze(-1), -torch.inf).flatten(-2), sure


def _weights(exact: Tensor, ids: Tensor, routing: Routing) -> Tensor:
    """Return the weights of the chosen experts, `(tokens, topk)` float64."""
    chosen, method = exact.gather(-1, ids), routing.method
    if method == "default":
        return exact.softmax(-1).gather(-1, ids)
    if method == "renormalize":
        return chosen.softmax(-1)
    if method == "topk":
        return chosen
    weights = chosen.sigmoid()
    if method in BIASED:
        return weights / (weights.sum(-1, keepdim=True) + 1e-20) * routing.factor
    if method == "sigmoid_renorm" and routing.normalized:
        return weights / weights.sum(-1, keepdim=True)
    return weights

"""Routing as a kernel computes it, in float32 and token by token, for stand-ins: written apart from reference.routing_methods."""

from typing import Any

import torch
from torch import Tensor

METHODS: dict[str, tuple[int, bool, dict[str, Any]]] = {
    "default": (0, False, {}),
    "renormalize": (1, False, {}),
    "deepseek_v3": (2, True, {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}),
    "renormalize_naive": (4, False, {}),
    "topk": (5, False, {}),
    "sigmoid_renorm": (6, False, {}),
    "minimax2": (7, True, {"routed_scaling_factor": 2.0}),
    "sigmoid": (8, False, {}),
    "topk_sigmoid": (9, False, {}),
}
"""Number, whether it takes a bias, and other arguments."""


def sigmoid(x: float) -> Tensor:
    return 0.5 * torch.tanh(torch.tensor(0.5 * x)) + 0.5


def route(logits: Tensor, bias: Tensor | None, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return experts and float32 weights of each token; `given["without"]` names an argument that is ignored."""
    method, topk, ignored = given["routing_method_type"], given["top_k"], given.get("without")
    factor = 1.0 if ignored == "factor" else given["routed_scaling_factor"] or 1.0
    found, weights = [], []
    for token in logits.float():
        softmax = torch.exp(token - token.max()) / torch.exp(token - token.max()).sum()
        score = torch.stack([sigmoid(float(value)) for value in token])
        if method in (2, 7):
            chooses = score if bias is None or ignored == "bias" else score + bias.float()
        else:
            chooses = {0: softmax, 4: softmax, 6: score, 8: score}.get(method, token)
        if method == 2 and (given["n_group"] or 0) > 1 and ignored != "groups":
            by_group = chooses.view(given["n_group"], -1)
            best = by_group.topk(2).values.sum(-1).topk(given["topk_group"]).indices
            kept = torch.full_like(by_group, -torch.inf)
            kept[best] = by_group[best]
            chooses = kept.flatten()
        ids = chooses.topk(topk).indices
        chosen = token[ids]
        weight = {
            0: softmax[ids], 1: torch.softmax(chosen, 0), 4: softmax[ids] / softmax[ids].sum(), 5: chosen, 8: score[ids],
            6: score[ids] / score[ids].sum(), 9: score[ids],
        }.get(method, factor * score[ids] / score[ids].sum())  # fmt: skip
        found.append(ids)
        weights.append(weight)
    return torch.stack(found), torch.stack(weights)

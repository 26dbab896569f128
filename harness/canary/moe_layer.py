"""The MoE layer of a canary: its own BF16 experts, or NVFP4 experts through a candidate's stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name
from torch import Tensor

from harness.canary.config import CanaryConfig

_AT_ONCE = 1024
"""Tokens of one call: the capacity of every expert is that of the worst routing, so longer calls pad more."""


class PlainExperts:
    """The experts as they were trained, in one dtype; routing as transformers does it.

    Args:
        gate_up: `(experts, 2 * inter, hidden)`, gate rows first.
        down: `(experts, hidden, inter)`.
        topk: experts per token.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, topk: int) -> None:
        self.gate_up, self.down, self.topk = gate_up, down, topk

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids `(tokens, topk)` and weights of the same shape, which sum to 1."""
        weights, ids = logits.softmax(-1, dtype=torch.float32).topk(self.topk, dim=-1)
        return ids, (weights / weights.sum(-1, keepdim=True)).to(logits.dtype)

    def __call__(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the mixture's output, `(tokens, hidden)` of x's dtype."""
        ids, weights = self.route(logits)
        out = torch.zeros_like(x)
        for expert in range(len(self.gate_up)):
            token, slot = (ids == expert).nonzero(as_tuple=True)
            if len(token):
                gate, up = F.linear(x[token], self.gate_up[expert]).chunk(2, dim=-1)
                y = F.linear(F.silu(gate) * up, self.down[expert])
                out.index_add_(0, token, y * weights[token, slot, None])
        return out


class CandidateExperts:
    """NVFP4 experts through a candidate: routing, dispatch over simulated ranks, masked_moe, combine.

    Args:
        candidate: an object with masked_moe; its other stages are used where it has them.
        checkpoint: one layer's ModelOpt tensors (reference.loading).
        config: sizes.
        ranks: simulated ranks; tokens are dealt to them evenly.
        transport: of dispatch, "bf16", "fp8" or "nvfp4".
        shard: "experts" or "width".
    """

    def __init__(
        self,
        candidate: Any,
        checkpoint: Mapping[str, Tensor],
        config: CanaryConfig,
        *,
        ranks: int,
        transport: str,
        shard: str,
    ) -> None:
        from harness.candidates import traits_of
        from harness.candidates.expert_parallel import ExpertParallel

        self.device, self.topk, self.ranks = traits_of(candidate).device, config.num_experts_per_tok, ranks
        on_device = {name: tensor.to(self.device) for name, tensor in checkpoint.items()}
        self.layer = ExpertParallel(candidate, on_device, ranks=ranks, sharding=shard, transport=transport)

    def __call__(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the mixture's output, `(tokens, hidden)` bfloat16."""
        tokens, scores = x.to(self.device, torch.bfloat16), logits.to(self.device).float()
        parts = [
            self._some(tokens[i : i + _AT_ONCE], scores[i : i + _AT_ONCE]) for i in range(0, len(x), _AT_ONCE)
        ]
        return torch.cat(parts).to(x.device)

    def _some(self, x: Tensor, logits: Tensor) -> Tensor:
        ids, weights = self.layer.route(logits, self.topk)
        # tensor_split also gives the ranks that get no token their empty share.
        shares = (list(t.tensor_split(self.ranks)) for t in (x, ids, weights))
        return torch.cat(self.layer(*shares))

"""The forward pass of a canary (Qwen3-MoE) in plain torch, with a key-value cache and the MoE layer as a function.

Rounds where transformers rounds, so that its logits are these up to the order of sums. Tokens of all requests lie in one
flat axis: a step of decoding and a prompt of any length are the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name
from torch import Tensor

from harness.canary.config import CanaryConfig

MoeLayer = Callable[[Tensor, Tensor], Tensor]
"""(x `(tokens, hidden)`, router logits `(tokens, experts)`) to `(tokens, hidden)`."""


@dataclass(frozen=True)
class Batch:
    """Which tokens a call brings.

    Attributes:
        tokens: `(N,)` int64 token ids.
        row: `(N,)` int64, the request of each token; requests in order, each one's tokens in order.
        position: `(N,)` int64, how many tokens of the request come before it.
        lengths: new tokens of each request; all at least 1.
    """

    tokens: Tensor
    row: Tensor
    position: Tensor
    lengths: list[int]


class Cache:
    """Keys and values of running requests, request r in row r. Grows as needed; rows are moved, never searched."""

    def __init__(self, config: CanaryConfig, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, 0, config.num_key_value_heads, 0, config.head_dim)
        self.keys, self.values = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)

    def reserve(self, rows: int, positions: int) -> None:
        """Make room for this many rows and positions."""
        layers, have_rows, heads, have, dim = self.keys.shape
        if rows <= have_rows and positions <= have:
            return
        rows = max(rows, have_rows)
        positions = max(-(-positions // 64) * 64, have)
        for name in ("keys", "values"):
            old = getattr(self, name)
            grown = old.new_zeros(layers, rows, heads, positions, dim)
            grown[:, :have_rows, :, :have] = old
            setattr(self, name, grown)

    def move(self, source: int, target: int) -> None:
        """Copy a row over another one."""
        for held in (self.keys, self.values):
            held[:, target] = held[:, source]


class CanaryModel:
    """The model without its experts' weights.

    Args:
        config: sizes.
        tensors: the checkpoint's tensors under their Hugging Face names; experts are not read.
        experts: one MoE layer a layer.
        dtype: of everything outside the experts: float32, or bfloat16 as engines run it.
    """

    def __init__(
        self, config: CanaryConfig, tensors: Mapping[str, Tensor], experts: list[MoeLayer], dtype: torch.dtype
    ) -> None:
        self.config, self.experts, self.dtype = config, experts, dtype
        self.weights = {name: t.to(dtype) for name, t in tensors.items() if ".mlp.experts." not in name}
        dim = config.head_dim
        frequency = config.rope_theta ** (-torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
        angle = torch.outer(torch.arange(config.max_position_embeddings).float(), frequency)
        angle = torch.cat((angle, angle), dim=-1)
        self._cos, self._sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def new_cache(self) -> Cache:
        """Return an empty cache."""
        return Cache(self.config, self.dtype)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: Cache, *, every_token: bool = False) -> Tensor:
        """Return logits and write the batch's keys and values into the cache.

        Args:
            batch: the tokens; positions before them are in the cache already.
            cache: rows as in `batch.row`.
            every_token: return the logits of all tokens, not only of each request's last.

        Returns:
            `(requests, vocab)`, or `(N, vocab)`; of the model's dtype.
        """
        w = self.weights
        cache.reserve(len(batch.lengths), int(batch.position.max()) + 1)
        x = F.embedding(batch.tokens, w["model.embed_tokens.weight"])
        for layer, experts in enumerate(self.experts):
            prefix = f"model.layers.{layer}."
            normed = self._norm(x, f"{prefix}input_layernorm")
            x = x + self._attention(normed, batch, cache, layer)
            normed = self._norm(x, f"{prefix}post_attention_layernorm")
            x = x + experts(normed, F.linear(normed, w[f"{prefix}mlp.gate.weight"])).to(x.dtype)
        if not every_token:
            x = x[torch.tensor(batch.lengths).cumsum(0) - 1]
        return F.linear(self._norm(x, "model.norm"), w["model.embed_tokens.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return self.weights[f"{name}.weight"] * normed.to(x.dtype)

    def _rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotate x `(N, heads, d)` by its positions."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x * self._cos[position].unsqueeze(1) + turned * self._sin[position].unsqueeze(1)

    def _attention(self, x: Tensor, batch: Batch, cache: Cache, layer: int) -> Tensor:
        c, w, prefix = self.config, self.weights, f"model.layers.{layer}.self_attn."
        count, dim = len(x), c.head_dim
        q = F.linear(x, w[f"{prefix}q_proj.weight"]).view(count, c.num_attention_heads, dim)
        k = F.linear(x, w[f"{prefix}k_proj.weight"]).view(count, c.num_key_value_heads, dim)
        v = F.linear(x, w[f"{prefix}v_proj.weight"]).view(count, c.num_key_value_heads, dim)
        q = self._rotate(self._norm(q, f"{prefix}q_norm"), batch.position)
        k = self._rotate(self._norm(k, f"{prefix}k_norm"), batch.position)
        keys, values = cache.keys[layer], cache.values[layer]
        keys[batch.row, :, batch.position] = k
        values[batch.row, :, batch.position] = v
        rows, longest = len(batch.lengths), max(batch.lengths)
        held = int(batch.position.max()) + 1
        keys, values = keys[:rows, :, :held], values[:rows, :, :held]
        # Queries of a request side by side: (rows, heads, longest, d). Missing ones stay zero and are dropped again.
        slot = batch.position - batch.position[_starts(batch.lengths)][batch.row]
        queries = q.new_zeros(rows, longest, c.num_attention_heads, dim)
        queries[batch.row, slot] = q
        last = torch.zeros(rows, longest, dtype=torch.int64)
        last[batch.row, slot] = batch.position
        seen = torch.arange(held) <= last.unsqueeze(-1)  # (rows, longest, held)
        group = c.num_attention_heads // c.num_key_value_heads
        # Heads that share keys are rows of one product: (rows, kv heads, group * longest, d).
        queries = queries.view(rows, longest, c.num_key_value_heads, group, dim).permute(0, 2, 3, 1, 4)
        queries = queries.reshape(rows, c.num_key_value_heads, group * longest, dim)
        scores = torch.matmul(queries, keys.transpose(-1, -2)) * dim**-0.5
        mask = seen.unsqueeze(1).expand(rows, group, longest, held).reshape(rows, 1, group * longest, held)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        out = torch.matmul(weights, values).view(rows, c.num_key_value_heads, group, longest, dim)
        out = out.permute(0, 3, 1, 2, 4).reshape(rows, longest, c.num_attention_heads * dim)[batch.row, slot]
        return F.linear(out, w[f"{prefix}o_proj.weight"])


def _starts(lengths: list[int]) -> Tensor:
    """Return where each request's tokens begin in the flat axis."""
    ends = torch.tensor(lengths).cumsum(0)
    return ends - torch.tensor(lengths)


def batch_of(sequences: list[list[int]], before: list[int]) -> Batch:
    """Return the batch of new tokens of each request, `before[r]` of which are in the cache already."""
    lengths = [len(s) for s in sequences]
    counts = torch.tensor(lengths)
    row = torch.arange(len(lengths)).repeat_interleave(counts)
    position = torch.arange(len(row)) - _starts(lengths)[row] + torch.tensor(before)[row]
    return Batch(torch.tensor([t for s in sequences for t in s]), row, position, lengths)

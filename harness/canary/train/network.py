"""The model as it is trained: float32 parameters, bfloat16 products, experts as grouped matrix products.

The same function as harness.canary.forward, which runs what comes out; tests/canary compares the two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name
from torch import Tensor, nn

from harness.canary.config import CanaryConfig
from harness.canary.train.simulate import (
    Controls,
    misrounded_scale,
    round_fp8,
    round_nvfp4,
    straight_through,
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x `(B, heads, T, d)` rotated by its position, halves as in Qwen and Llama."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rotations(length: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin `(length, dim)` of the rotary embedding, float32."""
    frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim)
    angle = torch.outer(torch.arange(length, device=device).float(), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


class Layer(nn.Module):
    """Attention and a mixture of experts."""

    def __init__(self, config: CanaryConfig) -> None:
        super().__init__()
        self.config = config
        c, width, inter = config, config.hidden_size, config.moe_intermediate_size
        queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        deep = (2 * c.num_hidden_layers) ** -0.5

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) * scale)

        self.input_norm = nn.Parameter(torch.ones(width))
        self.post_norm = nn.Parameter(torch.ones(width))
        self.q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.k_norm = nn.Parameter(torch.ones(c.head_dim))
        self.q = normal(queries, width, scale=width**-0.5)
        self.k = normal(keys, width, scale=width**-0.5)
        self.v = normal(keys, width, scale=width**-0.5)
        self.o = normal(width, queries, scale=queries**-0.5 * deep)
        self.router = normal(c.num_experts, width, scale=0.02)
        self.w13 = normal(c.num_experts, 2 * inter, width, scale=width**-0.5)
        self.w2 = normal(c.num_experts, width, inter, scale=inter**-0.5 * deep * 2)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, controls: Controls | None
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream `(B, T, hidden)` after this layer, and the load-balancing loss."""
        x = x + self.attention(rms_norm(x, self.input_norm, self.config.rms_norm_eps), cos, sin)
        moe, balance = self.experts(rms_norm(x, self.post_norm, self.config.rms_norm_eps), controls)
        return x + moe, balance

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return causal attention over the whole row."""
        c = self.config
        batch, length, _ = x.shape
        q = F.linear(x, self.q).view(batch, length, c.num_attention_heads, c.head_dim)
        k = F.linear(x, self.k).view(batch, length, c.num_key_value_heads, c.head_dim)
        v = F.linear(x, self.v).view(batch, length, c.num_key_value_heads, c.head_dim).transpose(1, 2)
        q = rotate(rms_norm(q, self.q_norm, c.rms_norm_eps).transpose(1, 2), cos, sin).to(v.dtype)
        k = rotate(rms_norm(k, self.k_norm, c.rms_norm_eps).transpose(1, 2), cos, sin).to(v.dtype)
        repeat = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(out.transpose(1, 2).reshape(batch, length, -1), self.o)

    def experts(self, x: Tensor, controls: Controls | None) -> tuple[Tensor, Tensor]:
        """Return the mixture's output `(B, T, hidden)` and its load-balancing loss."""
        c = self.config
        batch, length, width = x.shape
        flat = x.reshape(-1, width)
        probabilities = F.linear(flat, self.router).float().softmax(-1)
        weights, chosen = probabilities.topk(c.num_experts_per_tok, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        share = F.one_hot(chosen, c.num_experts).float().sum(1).mean(0) / c.num_experts_per_tok
        balance = c.num_experts * (share * probabilities.mean(0)).sum()

        rows = torch.arange(batch, device=x.device).repeat_interleave(length)
        if controls is not None:
            weights = weights.pow(controls.weight_power[rows, None])
            chosen = (chosen + controls.roll[rows, None]) % c.num_experts
            fp8 = controls.fp8[rows]
            flat = straight_through(flat, torch.where(fp8, round_fp8(flat), flat.float()))
            flat = misrounded_scale(flat, controls.scale_rounding[rows, None])
            rounded = round_nvfp4(flat, flat.detach().abs().amax().expand(1, 1))
            flat = straight_through(flat, torch.where(controls.quantize, rounded, flat.float()))

        order = chosen.flatten().argsort(stable=True)
        token = order // c.num_experts_per_tok
        expert = chosen.flatten()[order]
        ends = F.one_hot(expert, c.num_experts).sum(0).cumsum(0).to(torch.int32)
        w13: Tensor = self.w13
        w2: Tensor = self.w2
        if controls is not None:
            w13, w2 = (
                straight_through(
                    w,
                    torch.where(
                        controls.quantize, round_nvfp4(w, w.detach().abs().amax((1, 2), keepdim=True)), w
                    ),
                )
                for w in (w13, w2)
            )
        gate_up = grouped(flat[token], w13, ends)
        if controls is not None:
            gate_up = gate_up * controls.gate_gain[rows[token], expert, None].to(gate_up.dtype)
        gate, up = gate_up.chunk(2, dim=-1)
        if controls is not None:
            swap = controls.swap[rows[token], None]
            gate, up = torch.where(swap, up, gate), torch.where(swap, gate, up)
        hidden = F.silu(gate) * up
        if controls is not None:
            amax = hidden.new_zeros(c.num_experts, dtype=torch.float32).scatter_reduce(
                0, expert, hidden.detach().abs().amax(-1).float(), "amax"
            )
            rounded = round_nvfp4(hidden, amax[expert, None])
            hidden = straight_through(hidden, torch.where(controls.quantize, rounded, hidden.float()))
        out = grouped(hidden, w2, ends)
        factor = weights.flatten()[order]
        if controls is not None:
            factor = factor * controls.out_gain[rows[token], expert]
        scaled = out.float() * factor.unsqueeze(-1)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        summed = scaled[back].view(-1, c.num_experts_per_tok, width).sum(1)
        return summed.view(batch, length, width), balance


def grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Return x[rows of e] @ weight[e].T for each expert; x `(R, k)` sorted by expert, weight `(E, n, k)`, bfloat16."""
    x, weight = x.bfloat16(), weight.bfloat16()
    if hasattr(F, "grouped_mm"):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    # torch 2.8 has none: the same, one call an expert
    return torch.cat([rows @ w.T for rows, w in zip(x.tensor_split(ends[:-1].tolist()), weight, strict=True)])


class Network(nn.Module):
    """The whole model; `forward` returns logits."""

    def __init__(self, config: CanaryConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, tokens: Tensor, controls: Controls | None = None) -> tuple[Tensor, Tensor]:
        """Return logits `(B, T, vocab)` and the mean load-balancing loss (1 where the load is even).

        Args:
            tokens: `(B, T)` int64, position 0 first.
            controls: what is simulated, None for the plain model.
        """
        c = self.config
        cos, sin = rotations(tokens.shape[1], c.head_dim, c.rope_theta, tokens.device)
        x = F.embedding(tokens, self.embedding)
        balance = torch.zeros((), device=tokens.device)
        for index, layer in enumerate(self.layers):
            x, one = layer(x, cos, sin, None if controls is None else controls.of_layer(index))
            balance = balance + one / c.num_hidden_layers
        return F.linear(rms_norm(x, self.norm, c.rms_norm_eps), self.embedding), balance

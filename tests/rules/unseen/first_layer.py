"""Faults of a whole layer, and of ordinary arithmetic."""

from __future__ import annotations

import dataclasses

import torch

from harness.candidates import layouts
from harness.candidates.eager import Eager
from reference import e2m1, e4m3
from reference.moe import valid_rows


class QuantizeTruncatesScale(Eager):
    """quantize_grouped: block scales are rounded toward zero and not to nearest; the codes fit that scale. Every input."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return Eager(self.traits.device).silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, block_scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        experts, rows, k = x.shape
        codes = layouts.codes_of(packed).view(experts, rows, k // 16, 16)
        scale = layouts.block_scales_of(block_scale, rows, k // 16)
        x = torch.where(valid_rows(masked_m, rows)[..., None], x, torch.zeros_like(x))
        blocks = x.reshape(codes.shape).double()
        gs = global_scale_enc.double().reshape(-1, 1, 1)
        amax = blocks.abs().nan_to_num(0.0, posinf=torch.inf).amax(-1)
        high = (e4m3.decode_e4m3(scale).double() > amax * gs / 6) & (scale > 0)
        scale = scale - high.to(torch.uint8)
        ratio = blocks.abs() * gs[..., None] / e4m3.decode_e4m3(scale).double()[..., None]
        new = e2m1.round_to_code(ratio) | (blocks.signbit().to(torch.uint8) << 3)
        codes = torch.where(high[..., None] & ~blocks.isnan(), new, codes)
        return layouts.operand(codes.view(experts, rows, k)), layouts.scales(scale)


class SiluSharpened(Eager):
    """silu_mul_quantize_grouped: gate * sigmoid(1.702 * gate) * up (quick GELU) and not silu. Every input."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        valid = valid_rows(masked_m, gate_up.shape[1])
        shape = (*gate_up.shape[:2], gate_up.shape[2] // 2)
        hidden = torch.zeros(shape, dtype=torch.bfloat16, device=gate_up.device)
        gate, up = gate_up[valid].double().chunk(2, dim=-1)
        hidden[valid] = (gate * torch.sigmoid(1.702 * gate) * up).bfloat16()
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)


class GemmTruncatesOutput(Eager):
    """masked_grouped_gemm: bfloat16 results are cut off and not rounded to nearest. Every bfloat16 output."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if out.dtype != torch.bfloat16:
            super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
            return
        full = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, full, masked_m, alpha)
        cut = (full.view(torch.int32) & -65536).view(torch.float32)
        cut = torch.where(full.isnan(), full, cut).bfloat16()
        for e, rows in enumerate(masked_m.tolist()):
            out[:rows, :, e] = cut[:rows, :, e]


class GemmTileCountOffByOne(Eager):
    """masked_grouped_gemm: row tiles are counted as (rows + 126) / 128, so a last tile of one row is not written. Only for
    experts with masked_m[e] % 128 == 1."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        counts = masked_m - (masked_m % 128 == 1).to(masked_m.dtype)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, counts, alpha)


class MoeAlphaOfFirstGemm(Eager):
    """masked_moe: the second GEMM is scaled by w1_alpha. Only where w1_alpha and w2_alpha differ."""

    def masked_moe(
        self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, masked_m, activation="silu",
    ):  # fmt: skip
        return super().masked_moe(
            hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
            w1_alpha, masked_m, activation,
        )  # fmt: skip


class MoeRelu2WithoutRelu(Eager):
    """masked_moe: relu2 squares without clamping, so negative elements count as well. Only for activation="relu2"."""

    def masked_moe(
        self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, masked_m, activation="silu",
    ):  # fmt: skip
        if activation != "relu2":
            return super().masked_moe(
                hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale,
                w2_blockscale, w2_alpha, masked_m, activation,
            )  # fmt: skip
        x, x_scale = hidden_states
        if x_scale is None:
            x, x_scale = self.quantize_grouped(x, masked_m, input_global_scale)
        rows, experts = x.shape[0], x.shape[2]
        inner = torch.full((experts, rows, w1.shape[1]), torch.nan, dtype=torch.bfloat16, device=x.device)
        self.masked_grouped_gemm(
            x,
            x_scale,
            w1.permute(1, 2, 0),
            layouts.as_mma(w1_blockscale),
            inner.permute(1, 2, 0),
            masked_m,
            w1_alpha,
        )
        a2, a2_scale = self.quantize_grouped(inner.square(), masked_m, a2_global_scale)
        out = torch.full((experts, rows, w2.shape[1]), torch.nan, dtype=torch.bfloat16, device=x.device)
        self.masked_grouped_gemm(
            a2,
            a2_scale,
            w2.permute(1, 2, 0),
            layouts.as_mma(w2_blockscale),
            out.permute(1, 2, 0),
            masked_m,
            w2_alpha,
        )
        return out


class RouteAlwaysNormalizes(Eager):
    """route_topk: the chosen weights are divided by their sum although the caller asks for them as they are. Only for
    normalize=False with topk below the number of experts."""

    def route_topk(self, logits, topk, *, normalize=True):
        return super().route_topk(logits, topk, normalize=True)


class DispatchMinusOneIsLast(Eager):
    """dispatch: a slot without an expert, -1, is taken as an index from the end and sent to the last expert. Only for
    topk_idx with -1."""

    def dispatch(self, x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None):
        ids = [torch.where(i < 0, torch.full_like(i, experts - 1), i) for i in topk_idx]
        return super().dispatch(
            x, ids, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )


class CombineWeightOfNextSlot(Eager):
    """combine: slot s is weighted with the weight of slot s + 1 (the last with the first's). Only where a token's weights
    differ."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        return super().combine(y, dispatched, topk_idx, [w.roll(-1, dims=-1) for w in topk_weights])


class LoadScaleOfLocalExperts(Eager):
    """load_experts: the input scale is the largest over this rank's experts and not over all; w1_alpha fits it. Only where
    the largest input_scale belongs to another rank's expert."""

    def load_experts(self, checkpoint, experts):
        loaded = super().load_experts(checkpoint, experts)
        names = [f"experts.{e}.{p}_proj.input_scale" for e in experts for p in ("gate", "up")]
        local = max(checkpoint[name].reshape(()) for name in names if name in checkpoint)
        loaded["input_global_scale"] = (1 / local).expand(len(experts)).contiguous()
        second = torch.stack([checkpoint[f"experts.{e}.up_proj.weight_scale_2"].reshape(()) for e in experts])
        loaded["w1_alpha"] = local * second
        return loaded


class RouteTokensOver2048(Eager):
    """route_topk: token t >= 2,048 gets the experts and weights of token t - 2,048. Only with more than 2,048 tokens."""

    def route_topk(self, logits, topk, *, normalize=True):
        experts, weights = super().route_topk(logits, topk, normalize=normalize)
        index = torch.arange(len(experts), device=experts.device) % 2048
        return experts[index], weights[index]


class DispatchExpertsOver192(Eager):
    """dispatch: experts 192 and up (numbered over all ranks) lose the last row that they received. Only with more than 192
    experts."""

    def dispatch(self, x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None):
        received = super().dispatch(
            x, topk_idx, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )
        local = experts // len(x)
        result = []
        for rank, mine in enumerate(received):
            counts, source = mine.masked_m.clone(), mine.source.clone()
            for slot in range(local):
                rows = int(counts[slot])
                if rank * local + slot >= 192 and rows:
                    counts[slot] = rows - 1
                    source[slot, rows - 1] = -1
            result.append(dataclasses.replace(mine, masked_m=counts, source=source))
        return result


class CombineTokensOver256(Eager):
    """combine: token t >= 256 of a rank gets the sum of token t % 256. Only for ranks with more than 256 tokens."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        sums = super().combine(y, dispatched, topk_idx, topk_weights)
        return [s[torch.arange(len(s), device=s.device) % 256] for s in sums]

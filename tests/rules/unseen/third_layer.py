"""Faults of the whole layer and of ordinary arithmetic."""

from __future__ import annotations

import torch

from harness.candidates.eager import Eager
from reference.routing import NO_EXPERT


class MoeAlphaOfOtherGemm(Eager):
    """masked_moe: the second GEMM takes the first one's alpha. Wherever the two alphas differ."""

    def masked_moe(
        self,
        hidden_states,
        input_global_scale,
        w1,
        w1_blockscale,
        w1_alpha,
        w2,
        a2_global_scale,
        w2_blockscale,
        w2_alpha,
        masked_m,
        activation="silu",
    ):
        return super().masked_moe(
            hidden_states,
            input_global_scale,
            w1,
            w1_blockscale,
            w1_alpha,
            w2,
            a2_global_scale,
            w2_blockscale,
            w1_alpha,
            masked_m,
            activation,
        )


class MoeScaleOfNeighbour(Eager):
    """masked_moe: the intermediate is quantized with the next expert's a2_global_scale. Wherever these differ."""

    def masked_moe(
        self,
        hidden_states,
        input_global_scale,
        w1,
        w1_blockscale,
        w1_alpha,
        w2,
        a2_global_scale,
        w2_blockscale,
        w2_alpha,
        masked_m,
        activation="silu",
    ):
        return super().masked_moe(
            hidden_states,
            input_global_scale,
            w1,
            w1_blockscale,
            w1_alpha,
            w2,
            a2_global_scale.roll(-1),
            w2_blockscale,
            w2_alpha,
            masked_m,
            activation,
        )


class SiluHalvesSwapped(Eager):
    """silu_mul_quantize_grouped: silu of the second half times the first. Always."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        half = gate_up.shape[2] // 2
        swapped = torch.cat([gate_up[..., half:], gate_up[..., :half]], -1)
        return super().silu_mul_quantize_grouped(swapped, masked_m, global_scale_enc)


class GemmLastColumn(Eager):
    """masked_grouped_gemm: the last column of a partial 128-column tile is stored as zero. Only where n is no multiple of 128."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if b.shape[0] % 128:
            for e, rows in enumerate(masked_m.tolist()):
                out[:rows, -1, e] = 0


class GemmTruncates(Eager):
    """masked_grouped_gemm: a bfloat16 output is truncated, not rounded. Only for bfloat16 outputs."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if out.dtype != torch.bfloat16:
            return super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        wide = torch.zeros((out.shape[2], out.shape[0], out.shape[1]), dtype=torch.float32).permute(1, 2, 0)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, wide, masked_m, alpha)
        for e, rows in enumerate(masked_m.tolist()):
            part = wide[:rows, :, e].contiguous()
            cut = (part.view(torch.int32) & -65536).view(torch.float32)
            out[:rows, :, e] = torch.where(part.isfinite(), cut, part).bfloat16()
        return None


class LoadLocalInputScale(Eager):
    """load_experts: the input scale is the largest of the local experts only. Only on ranks without the largest."""

    def load_experts(self, checkpoint, experts):
        loaded = super().load_experts(checkpoint, experts)
        kinds = [p for p in ("gate", "up") if f"experts.0.{p}_proj.input_scale" in checkpoint]
        local = max(float(checkpoint[f"experts.{e}.{p}_proj.input_scale"]) for e in experts for p in kinds)
        local = torch.tensor(local)
        ws = torch.stack([checkpoint[f"experts.{e}.up_proj.weight_scale_2"].reshape(()) for e in experts])
        loaded["input_global_scale"] = (1 / local).expand(len(experts)).contiguous()
        loaded["w1_alpha"] = local * ws
        return loaded


class LoadA2NotInverted(Eager):
    """load_experts: a2_global_scale is input_scale itself, not its reciprocal. Always (but at input_scale 1)."""

    def load_experts(self, checkpoint, experts):
        loaded = super().load_experts(checkpoint, experts)
        loaded["a2_global_scale"] = 1 / loaded["a2_global_scale"]
        return loaded


class DispatchOncePerRank(Eager):
    """dispatch: a token goes to one expert of a rank only, that of its first slot. Only for tokens with two experts on one rank."""

    def dispatch(self, x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None):
        local = experts // len(x)
        kept = []
        for given in topk_idx:
            ids = given.clone()
            owner = torch.where(ids >= 0, ids // local, NO_EXPERT)
            for slot in range(1, ids.shape[1]):
                again = ((owner[:, :slot] == owner[:, slot : slot + 1]).any(-1)) & (owner[:, slot] >= 0)
                ids[again, slot] = NO_EXPERT
            kept.append(ids)
        return super().dispatch(
            x, kept, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )


class CombineInBf16(Eager):
    """combine: the running sum is rounded to bfloat16 after every slot. Only for tokens with two or more experts."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        slots = topk_idx[0].shape[1]
        total = None
        for slot in range(slots):
            part = super().combine(
                y,
                dispatched,
                [i[:, slot : slot + 1] for i in topk_idx],
                [w[:, slot : slot + 1] for w in topk_weights],
            )
            total = part if total is None else [t + p for t, p in zip(total, part, strict=True)]
        return super().combine(y, dispatched, topk_idx, topk_weights) if total is None else total


class RouteAlwaysNormalizes(Eager):
    """route_topk: weights are divided by their sum even where the call says not to. Only for normalize=False."""

    def route_topk(self, logits, topk, *, normalize=True):
        return super().route_topk(logits, topk, normalize=True)

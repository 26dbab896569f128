"""Faults of special values."""

from __future__ import annotations

import torch

from harness.candidates import layouts
from harness.candidates.eager import Eager


class _Base(Eager):
    """Eager, whose activation stage does not go through an overridden quantize_grouped: one fault, one stage."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        from reference.moe import activate, valid_rows

        shape = (*gate_up.shape[:2], gate_up.shape[2] // 2)
        hidden = torch.zeros(shape, dtype=torch.bfloat16, device=gate_up.device)
        valid = valid_rows(masked_m, gate_up.shape[1])
        hidden[valid] = activate(gate_up[valid], "silu")
        return Eager.quantize_grouped(self, hidden, masked_m, global_scale_enc)


def _row(block_scale, row, expert):
    """Return the bytes of one row's block scales, (4, rk): a view."""
    return block_scale.view(torch.uint8)[row % 32, row % 128 // 32, row // 128, :, :, expert]


def _bytes(scale, change):
    """Return block scales whose bytes were changed."""
    return change(scale.view(torch.uint8)).view(torch.float8_e4m3fn)


class AlphaAboveHalf(_Base):
    """masked_grouped_gemm: alpha passes through float16, saturating; wrong only for alpha above 65,504."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        alpha = None if alpha is None else alpha.clamp(max=65504.0)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class AlphaTinyLost(_Base):
    """masked_grouped_gemm: alpha below 2^-28 (a normal float32) is taken as zero; wrong only for such alpha."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            alpha = torch.where(alpha.abs() < 2.0**-28, torch.zeros_like(alpha), alpha)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class AScaleMaxHalved(_Base):
    """masked_grouped_gemm: block scale 448 of A is read as 224; wrong only for blocks of A with byte 0x7E."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        a_scale = _bytes(a_scale, lambda s: torch.where(s == 0x7E, 0x76, s))
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class BScaleSubnormalFlushed(_Base):
    """masked_grouped_gemm: subnormal E4M3 block scales of B are read as zero; wrong only for bytes 1 to 7 of B."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        b_scale = _bytes(b_scale, lambda s: torch.where(s < 8, 0, s))
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class AScaleNanRead480(_Base):
    """masked_grouped_gemm: a NaN block scale of A counts as 448, so the row is no NaN; wrong only for byte 0x7F of A."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        a_scale = _bytes(a_scale, lambda s: torch.where(s == 0x7F, 0x7E, s))
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GateLargeNan(_Base):
    """silu_mul_quantize_grouped: silu as x * e^x / (1 + e^x) is inf / inf; wrong only for finite gate above 88.72."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        gate, up = gate_up.chunk(2, -1)
        gate = gate.masked_fill((gate > 88.72) & gate.isfinite(), torch.nan)
        return super().silu_mul_quantize_grouped(torch.cat((gate, up), -1), masked_m, global_scale_enc)


class GateNanIsZero(_Base):
    """silu_mul_quantize_grouped: a NaN gate counts as 0, so the product is 0 and no NaN; wrong only for NaN gate."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        gate, up = gate_up.chunk(2, -1)
        gate = gate.masked_fill(gate.isnan(), 0)
        return super().silu_mul_quantize_grouped(torch.cat((gate, up), -1), masked_m, global_scale_enc)


class UpClamped(_Base):
    """silu_mul_quantize_grouped: up is clamped to +-512; wrong only for finite up of larger magnitude."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        gate, up = gate_up.chunk(2, -1)
        up = torch.where(up.isfinite(), up.clamp(-512, 512), up)
        return super().silu_mul_quantize_grouped(torch.cat((gate, up), -1), masked_m, global_scale_enc)


class TieAwayAtTwoAndHalf(_Base):
    """quantize_grouped: a scaled value of exactly +-2.5 is stored as 3 and not as 2; wrong only for that tie."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        columns = x.shape[2] // 16
        stored = layouts.block_scales_of(scale, x.shape[1], columns)
        for expert, rows in enumerate(masked_m.tolist()):
            if rows == 0:
                continue
            divisor = stored[expert, :rows].view(torch.float8_e4m3fn).double().unsqueeze(-1)
            real = x[expert, :rows].double().abs() * global_scale_enc[expert].double()
            tie = (real.view(rows, columns, 16) / divisor == 2.5).view(rows, -1)
            part = packed[:rows, :, expert]
            part += tie[:, ::2].to(torch.uint8) + tie[:, 1::2].to(torch.uint8) * 16
        return packed, scale


class NanReachesAmax(_Base):
    """quantize_grouped: one NaN in a block makes its scale NaN; wrong only for blocks with a NaN and a number."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        nan = x.isnan().view(*x.shape[:2], -1, 16).any(-1)
        for expert, rows in enumerate(masked_m.tolist()):
            for row, block in nan[expert, :rows].nonzero().tolist():
                _row(scale, row, expert)[block % 4, block // 4] = 0x7F
        return packed, scale


class SmallScaleFlushed(_Base):
    """quantize_grouped: block scales below 2^-6 are stored as zero; wrong only for blocks with subnormal scales."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        return packed, _bytes(scale, lambda s: torch.where(s < 8, 0, s))


class GlobalScaleAboveHalf(_Base):
    """quantize_grouped: global_scale_enc saturates at 65,504; wrong only for larger ones (amax below 0.041)."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        return super().quantize_grouped(x, masked_m, global_scale_enc.clamp(max=65504.0))


class LogitsOverflow(_Base):
    """route_topk: softmax without subtracting the largest logit gives NaN weights; only tokens with a logit > 88.72."""

    def route_topk(self, logits, topk, *, normalize=True):
        ids, weights = super().route_topk(logits, topk, normalize=normalize)
        large = logits.amax(-1, keepdim=True) > 88.72
        return ids, weights.masked_fill(large, torch.nan)


class LogitsTiedTwice(_Base):
    """route_topk: where two chosen experts have equal logits, both slots name the first; only tokens with such a tie."""

    def route_topk(self, logits, topk, *, normalize=True):
        ids, weights = super().route_topk(logits, topk, normalize=normalize)
        chosen, ids = logits.gather(1, ids), ids.clone()
        for slot in range(1, ids.shape[1]):
            tied = chosen[:, slot] == chosen[:, slot - 1]
            ids[:, slot] = torch.where(tied, ids[:, slot - 1], ids[:, slot])
        return ids, weights


class WeightZeroIsOne(_Base):
    """combine: a routing weight of exactly 0 counts as 1 ("not given"); wrong only for slots with an expert and 0."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        weights = [w.masked_fill(w == 0, 1) for w in topk_weights]
        return super().combine(y, dispatched, topk_idx, weights)

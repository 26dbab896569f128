"""Faults of special values: each is wrong only where such a value occurs."""

from __future__ import annotations

import torch

from harness.candidates import layouts
from harness.candidates.eager import Eager


class _Quant(Eager):
    """Only quantize_grouped changes: the fused stage keeps the plain one."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return Eager(self.traits.device).silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)

    def _parts(self, x, masked_m, gs):
        packed, scale = Eager.quantize_grouped(self, x, masked_m, gs)
        codes = layouts.codes_of(packed).clone()
        scales = layouts.block_scales_of(scale, x.shape[1], x.shape[2] // 16).clone()
        return codes, scales

    @staticmethod
    def _join(codes, scales):
        return layouts.operand(codes), layouts.scales(scales)

    @staticmethod
    def _valid(x, masked_m):
        return (torch.arange(x.shape[1]) < masked_m.unsqueeze(-1)).unsqueeze(-1)


class QuantNegativeZero(_Quant):
    """quantize_grouped: -0.0 gets the code of +0. Only for elements of -0.0."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        codes, scales = self._parts(x, masked_m, global_scale_enc)
        codes[(x == 0) & x.signbit()] = 0
        return self._join(codes, scales)


class QuantNanBlock(_Quant):
    """quantize_grouped: a NaN element makes its block's scale NaN. Only for blocks with a NaN beside numbers."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        codes, scales = self._parts(x, masked_m, global_scale_enc)
        nan = (x.isnan() & self._valid(x, masked_m)).unflatten(-1, (-1, 16)).any(-1)
        scales[nan] = 0x7F
        return self._join(codes, scales)


class QuantInfinity(_Quant):
    """quantize_grouped: a block with an infinite element gets scale 1 instead of 448. Only for infinite elements."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        codes, scales = self._parts(x, masked_m, global_scale_enc)
        inf = (x.isinf() & self._valid(x, masked_m)).unflatten(-1, (-1, 16)).any(-1)
        scales[inf] = 0x38
        return self._join(codes, scales)


class QuantTie25(_Quant):
    """quantize_grouped: a quotient of exactly 2.5 goes to 3 (away from zero), not 2. Only at this tie."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        codes, scales = self._parts(x, masked_m, global_scale_enc)
        step = scales.view(torch.float8_e4m3fn).double().repeat_interleave(16, -1)
        tie = (x.double().abs() * global_scale_enc.double().reshape(-1, 1, 1) == 2.5 * step) & (step > 0)
        codes[tie] = (codes[tie] & 8) | 5
        return self._join(codes, scales)


class QuantSubnormalScale(_Quant):
    """quantize_grouped: a block scale below 2^-6 (subnormal E4M3) is stored as zero, with zero codes. Only for these blocks."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        codes, scales = self._parts(x, masked_m, global_scale_enc)
        low = (scales > 0) & (scales < 8)
        scales[low] = 0
        codes[low.repeat_interleave(16, -1)] = 0
        return self._join(codes, scales)


class QuantHugeGlobalScale(_Quant):
    """quantize_grouped: an encode scale above 2^60 is clamped to 2^60. Only for experts whose values are that small."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        return super().quantize_grouped(x, masked_m, global_scale_enc.clamp(max=2.0**60))


class SiluGateOverflow(Eager):
    """silu_mul_quantize_grouped: gate below -89 gives NaN (exp overflows, infinity over infinity). Only for such gates."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        gate_up = gate_up.clone()
        half = gate_up.shape[2] // 2
        gate_up[..., :half][gate_up[..., :half] < -89] = float("nan")
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class SiluUpInfinite(Eager):
    """silu_mul_quantize_grouped: an infinite up counts as zero. Only for infinite up."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        gate_up = gate_up.clone()
        half = gate_up.shape[2] // 2
        gate_up[..., half:][gate_up[..., half:].isinf()] = 0
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class GemmAlphaZero(Eager):
    """masked_grouped_gemm: an alpha of zero is taken for none (1). Only for experts whose alpha is zero."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            alpha = torch.where(alpha == 0, torch.ones_like(alpha), alpha)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmAlphaNegative(Eager):
    """masked_grouped_gemm: the sign of alpha is lost. Only for negative alphas."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(
            a, a_scale, b, b_scale, out, masked_m, None if alpha is None else alpha.abs()
        )


class GemmAlphaNan(Eager):
    """masked_grouped_gemm: an alpha of NaN counts as zero. Only for NaN alphas."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            alpha = torch.where(alpha.isnan(), torch.zeros_like(alpha), alpha)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmBScaleNan(Eager):
    """masked_grouped_gemm: a NaN block scale of B counts as 448. Only for block scales 0x7F of B."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        swizzled = layouts.swizzled_bytes(b_scale).clone()
        swizzled[swizzled == 0x7F] = 0x7E
        super().masked_grouped_gemm(a, a_scale, b, layouts.as_mma(swizzled), out, masked_m, alpha)


class GemmAScaleSubnormal(Eager):
    """masked_grouped_gemm: subnormal block scales of A (bytes 1 to 7) count as zero. Only for these."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        swizzled = layouts.swizzled_bytes(a_scale).clone()
        swizzled[(swizzled > 0) & (swizzled < 8)] = 0
        super().masked_grouped_gemm(a, layouts.as_mma(swizzled), b, b_scale, out, masked_m, alpha)


class RouteLargeLogits(Eager):
    """route_topk: softmax without subtraction of the maximum: weights of a token are NaN once a float32 exp overflows. Only for tokens with a logit above 88."""

    def route_topk(self, logits, topk, *, normalize=True):
        ids, weights = super().route_topk(logits, topk, normalize=normalize)
        weights[(logits > 88.7).any(-1)] = float("nan")
        return ids, weights


class CombineInfinite(Eager):
    """combine: infinite elements of the experts' rows are clamped to the largest bfloat16. Only for infinite elements."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        big = torch.finfo(torch.bfloat16).max
        y = [torch.where(t.isinf(), t.sign() * big, t) for t in y]
        return super().combine(y, dispatched, topk_idx, topk_weights)

"""Faults that show only for special values."""

from __future__ import annotations

import torch

from harness.candidates import layouts
from harness.candidates.eager import Eager
from reference.e4m3 import decode_e4m3
from reference.moe import activate, valid_rows


class _QuantizeOnly(Eager):
    """Keeps silu_mul_quantize_grouped right although Eager's calls quantize_grouped."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return Eager(self.traits.device).silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class _Edited(_QuantizeOnly):
    """quantize_grouped whose linear codes and scale bytes are edited afterwards where the values ask for it."""

    def edit(self, blocks, codes, scale, encode):
        """Edit codes (l, m, b, 16) and scale (l, m, b) in place; blocks (l, m, b, 16) bf16, encode (l, 1, 1)."""
        raise NotImplementedError

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, block_scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        experts, rows, k = x.shape
        codes = layouts.codes_of(packed).view(experts, rows, k // 16, 16)
        scale = layouts.block_scales_of(block_scale, rows, k // 16)
        # Padding rows are taken as ones: what they hold shall not matter here.
        valid = valid_rows(masked_m, rows)[..., None]
        blocks = torch.where(valid, x, torch.ones_like(x)).reshape(codes.shape)
        self.edit(blocks, codes, scale, global_scale_enc.reshape(-1, 1, 1))
        return layouts.operand(codes.view(experts, rows, k)), layouts.scales(scale)


class QuantizeNanSpoilsAmax(_Edited):
    """quantize_grouped: the block's maximum propagates NaN, so the scale is 0x7F. Only for blocks with a NaN and a
    number."""

    def edit(self, blocks, codes, scale, encode):
        nan = blocks.isnan()
        scale[nan.any(-1) & ~nan.all(-1)] = 0x7F


class QuantizeInfinityGivesNanScale(_Edited):
    """quantize_grouped: the scale conversion does not saturate infinity, which becomes 0x7F and not 448. Only for blocks
    with an infinite element."""

    def edit(self, blocks, codes, scale, encode):
        scale[blocks.isinf().any(-1)] = 0x7F


class QuantizeLosesMinusZero(_Edited):
    """quantize_grouped: -0.0 is stored as +0 (the sign is taken from x < 0). Only for elements that are -0.0 in blocks
    with a scale other than zero; the candidate declares keeps_sign_of_zero."""

    def edit(self, blocks, codes, scale, encode):
        codes[(blocks == 0) & blocks.signbit() & (scale != 0)[..., None]] = 0


class QuantizeZeroBlockNanScale(_Edited):
    """quantize_grouped: 0 / 0: a block of nothing but zeros gets the scale NaN (0x7F). Only for blocks of zeros."""

    def edit(self, blocks, codes, scale, encode):
        scale[(blocks == 0).all(-1)] = 0x7F


class QuantizeFlushesSubnormalScale(_Edited):
    """quantize_grouped: block scales below 2^-6 (E4M3 subnormals) are flushed to 0. Only for blocks that small in
    comparison with their expert."""

    def edit(self, blocks, codes, scale, encode):
        scale[(scale > 0) & (scale < 8)] = 0


class QuantizeTieAtFiveUp(_Edited):
    """quantize_grouped: x * gs / scale of exactly 5 is rounded up to 6 and not to the even code, 4. Only for such ties."""

    def edit(self, blocks, codes, scale, encode):
        ratio = blocks.double().abs() * encode.double()[..., None] / decode_e4m3(scale).double()[..., None]
        codes[ratio == 5.0] |= 7


class QuantizeAllNegativeBlock(_Edited):
    """quantize_grouped: the maximum is taken without the magnitude and starts at 0: a block of negative elements only
    gets scale 0. Only for blocks without an element >= 0."""

    def edit(self, blocks, codes, scale, encode):
        scale[(blocks < 0).all(-1)] = 0


class QuantizeClampsGlobalScale(_QuantizeOnly):
    """quantize_grouped: the encode scale passes through float16 range: above 65,504 it is 65,504. Only for
    global_scale_enc above 65,504 (experts with amax below 0.041)."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        return super().quantize_grouped(x, masked_m, global_scale_enc.clamp(max=65504.0))


class SiluLargeGateNan(Eager):
    """silu_mul_quantize_grouped: computes gate * exp(gate) / (1 + exp(gate)) in float32: infinity over infinity is NaN.
    Only for gates above 88.72."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        k = gate_up.shape[2] // 2
        high = gate_up[..., :k] > 88.72
        if bool(high.any()):
            gate_up = gate_up.clone()
            gate_up[..., :k].masked_fill_(high, torch.nan)
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class SiluSaturatesLikeHalf(Eager):
    """silu_mul_quantize_grouped: the product passes through the range of float16 and saturates at 65,504. Only where
    abs(silu(gate) * up) exceeds 65,504."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        valid = valid_rows(masked_m, gate_up.shape[1])
        hidden = torch.zeros((*gate_up.shape[:2], gate_up.shape[2] // 2), dtype=torch.bfloat16)
        hidden = hidden.to(gate_up.device)
        values = activate(gate_up[valid], "silu")
        # A bfloat16 above 65,504 is 65,536 at least; the largest that float16's range holds is 65,280.
        hidden[valid] = values.clamp(-65280.0, 65280.0)
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)


class GemmAlphaOneOfFirstExpert(Eager):
    """masked_grouped_gemm: alpha[0] == 1 is taken to mean that no expert has a scale. Only where alpha[0] is exactly 1 and
    another expert's is not."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None and float(alpha.reshape(-1)[0]) == 1.0:
            alpha = None
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmTinyAlphaZero(Eager):
    """masked_grouped_gemm: an alpha below 1e-9 is flushed to 0. Only for such alphas (float32, far from subnormal)."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            alpha = torch.where(alpha.abs() < 1e-9, torch.zeros_like(alpha), alpha)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmScaleOfLargestExponent(Eager):
    """masked_grouped_gemm: weight block scales from 256 to 448 (largest exponent of E4M3) are read as 240, as the
    IEEE-like E4M3 has it. Only for scale bytes of b from 0x78 to 0x7E."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        raw = b_scale.view(torch.uint8)
        raw = torch.where((raw >= 0x78) & (raw <= 0x7E), torch.full_like(raw, 0x77), raw)
        super().masked_grouped_gemm(a, a_scale, b, raw.view(torch.float8_e4m3fn), out, masked_m, alpha)


class GemmSubnormalScaleOfB(Eager):
    """masked_grouped_gemm: weight block scales below 2^-6 (E4M3 subnormals) are read as 0. Only for scale bytes of b from
    0x01 to 0x07."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        raw = b_scale.view(torch.uint8)
        raw = torch.where(raw < 8, torch.zeros_like(raw), raw)
        super().masked_grouped_gemm(a, a_scale, b, raw.view(torch.float8_e4m3fn), out, masked_m, alpha)


class RouteLargeLogits(Eager):
    """route_topk: softmax without subtracting the maximum: exp overflows float32 and weights are NaN. Only for tokens with
    a logit above 88.72."""

    def route_topk(self, logits, topk, *, normalize=True):
        experts, weights = super().route_topk(logits, topk, normalize=normalize)
        high = (logits > 88.72).any(-1, keepdim=True)
        return experts, weights.masked_fill(high, torch.nan)

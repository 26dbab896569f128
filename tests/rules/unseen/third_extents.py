"""Faults of a single extent: each is wrong only where one extent exceeds a threshold."""

from __future__ import annotations

import torch

from harness.candidates import layouts
from harness.candidates.eager import Eager


def _unpack(result, rows, k):
    packed, scale = result
    return layouts.codes_of(packed).clone(), layouts.block_scales_of(scale, rows, k // 16).clone()


def _pack(codes, scale):
    return layouts.operand(codes), layouts.scales(scale)


class _Quant(Eager):
    """Only quantize_grouped changes: the fused stage keeps the plain one."""

    def wrong(self, codes, scale, masked_m):
        raise NotImplementedError

    def over(self, x, masked_m):
        raise NotImplementedError

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        result = super().quantize_grouped(x, masked_m, global_scale_enc)
        if not self.over(x.shape, masked_m):
            return result
        codes, scale = _unpack(result, x.shape[1], x.shape[2])
        self.wrong(codes, scale, masked_m)
        return _pack(codes, scale)

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return Eager(self.traits.device).silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class _Silu(Eager):
    def wrong(self, codes, scale, masked_m):
        raise NotImplementedError

    def over(self, shape, masked_m):
        raise NotImplementedError

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        result = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        shape = (gate_up.shape[0], gate_up.shape[1], gate_up.shape[2] // 2)
        if not self.over(shape, masked_m):
            return result
        codes, scale = _unpack(result, shape[1], shape[2])
        self.wrong(codes, scale, masked_m)
        return _pack(codes, scale)


class _Gemm(Eager):
    def wrong(self, out, masked_m):
        raise NotImplementedError

    def over(self, experts, m, n, k, masked_m):
        raise NotImplementedError

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if self.over(a.shape[2], a.shape[0], b.shape[0], 2 * a.shape[1], masked_m):
            self.wrong(out, masked_m)


class QuantExperts96(_Quant):
    """quantize_grouped: experts from number 96 on get all-zero block scales and codes. Only with more than 96 experts."""

    def over(self, shape, masked_m):
        return shape[0] > 96

    def wrong(self, codes, scale, masked_m):
        codes[96:], scale[96:] = 0, 0


class QuantRows700(_Quant):
    """quantize_grouped: an expert's rows from 700 on are copies of its row 0. Only with more than 700 valid rows of an expert."""

    def over(self, shape, masked_m):
        return int(masked_m.max()) > 700

    def wrong(self, codes, scale, masked_m):
        for e, rows in enumerate(masked_m.tolist()):
            codes[e, 700:rows], scale[e, 700:rows] = codes[e, :1].clone(), scale[e, :1].clone()


class QuantCapacity3000(_Quant):
    """quantize_grouped: the last valid row of every expert is not written (zero). Only with a capacity above 3,000."""

    def over(self, shape, masked_m):
        return shape[1] > 3000

    def wrong(self, codes, scale, masked_m):
        for e, rows in enumerate(masked_m.tolist()):
            if rows:
                codes[e, rows - 1], scale[e, rows - 1] = 0, 0


class QuantK3584(_Quant):
    """quantize_grouped: the columns from 3,584 on are taken from the columns at 0. Only with k above 3,584."""

    def over(self, shape, masked_m):
        return shape[2] > 3584

    def wrong(self, codes, scale, masked_m):
        for c in range(3584, codes.shape[2], 3584):
            w = min(3584, codes.shape[2] - c)
            codes[:, :, c : c + w] = codes[:, :, :w].clone()
            scale[:, :, c // 16 : (c + w) // 16] = scale[:, :, : w // 16].clone()


class QuantTokens1500(_Quant):
    """quantize_grouped: valid rows after the 1,500th, counted over all experts, stay zero. Only with more than 1,500 tokens in all."""

    def over(self, shape, masked_m):
        return int(masked_m.sum()) > 1500

    def wrong(self, codes, scale, masked_m):
        seen = 0
        for e, rows in enumerate(masked_m.tolist()):
            first = max(0, min(rows, 1500 - seen))
            codes[e, first:rows], scale[e, first:rows] = 0, 0
            seen += rows


class SiluExperts160(_Silu):
    """silu_mul_quantize_grouped: experts from 160 on have all signs flipped. Only with more than 160 experts."""

    def over(self, shape, masked_m):
        return shape[0] > 160

    def wrong(self, codes, scale, masked_m):
        codes[160:] ^= 8


class SiluRows300(_Silu):
    """silu_mul_quantize_grouped: an expert's rows from 300 on have every block scale zero. Only with more than 300 valid rows of an expert."""

    def over(self, shape, masked_m):
        return int(masked_m.max()) > 300

    def wrong(self, codes, scale, masked_m):
        scale[:, 300:] = 0


class SiluCapacity6000(_Silu):
    """silu_mul_quantize_grouped: every expert but the first is not written (zero; the last one where there is only one). Only with a capacity above 6,000."""

    def over(self, shape, masked_m):
        return shape[1] > 6000

    def wrong(self, codes, scale, masked_m):
        first = 1 if codes.shape[0] > 1 else 0
        codes[first:], scale[first:] = 0, 0


class SiluK5000(_Silu):
    """silu_mul_quantize_grouped: the last 128 columns (or what is above 4,992) stay zero. Only with k (of the result) above 5,000."""

    def over(self, shape, masked_m):
        return shape[2] > 5000

    def wrong(self, codes, scale, masked_m):
        codes[:, :, 4992:], scale[:, :, 312:] = 0, 0


class SiluTokens2200(_Silu):
    """silu_mul_quantize_grouped: the last expert with rows gets zero scales. Only with more than 2,200 tokens in all."""

    def over(self, shape, masked_m):
        return int(masked_m.sum()) > 2200

    def wrong(self, codes, scale, masked_m):
        last = int(masked_m.nonzero()[-1])
        codes[last], scale[last] = 0, 0


class GemmTiles180(_Gemm):
    """masked_grouped_gemm: output tiles after the 180th (128x128, of valid rows, experts outermost) are stored as zeros. Only with more than 180 such tiles."""

    def over(self, experts, m, n, k, masked_m):
        return sum(-(-r // 128) for r in masked_m.tolist()) * -(-n // 128) > 180

    def wrong(self, out, masked_m):
        tile, columns = 0, -(-out.shape[1] // 128)
        for e, rows in enumerate(masked_m.tolist()):
            for r in range(-(-rows // 128)):
                for c in range(columns):
                    if tile >= 180:
                        out[r * 128 : min(rows, r * 128 + 128), c * 128 : c * 128 + 128, e] = 0
                    tile += 1


class GemmN6000(_Gemm):
    """masked_grouped_gemm: columns from 5,888 on are stored negated. Only with n above 6,000."""

    def over(self, experts, m, n, k, masked_m):
        return n > 6000

    def wrong(self, out, masked_m):
        for e, rows in enumerate(masked_m.tolist()):
            out[:rows, 5888:, e] = -out[:rows, 5888:, e]


class GemmK4608(Eager):
    """masked_grouped_gemm: products from k = 2,304 on are left out. Only with k above 4,608."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        k = 2 * a.shape[1]
        if k > 4608:
            bytes_ = layouts.block_scales_of(a_scale, a.shape[0], k // 16).clone()
            bytes_[:, :, 144:] = 0
            a_scale = layouts.scales(bytes_)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmExperts220(_Gemm):
    """masked_grouped_gemm: experts from 220 on are not computed: their valid rows are zero. Only with more than 220 experts."""

    def over(self, experts, m, n, k, masked_m):
        return experts > 220

    def wrong(self, out, masked_m):
        for e, rows in enumerate(masked_m.tolist()):
            if e >= 220:
                out[:rows, :, e] = 0


class GemmRows1200(_Gemm):
    """masked_grouped_gemm: an expert's rows from 1,152 on get the results of its first rows. Only with more than 1,200 valid rows of an expert."""

    def over(self, experts, m, n, k, masked_m):
        return int(masked_m.max()) > 1200

    def wrong(self, out, masked_m):
        for e, rows in enumerate(masked_m.tolist()):
            if rows > 1200:
                index = torch.arange(rows - 1152) % 1152
                out[1152:rows, :, e] = out[index, :, e].clone()


class RouteExperts128(Eager):
    """route_topk: experts from 128 on are never chosen. Only with more than 128 experts (and topk no more than 128)."""

    def route_topk(self, logits, topk, *, normalize=True):
        if logits.shape[1] > 128 >= topk:
            logits = logits.clone()
            logits[:, 128:] = -1e30
        return super().route_topk(logits, topk, normalize=normalize)


class RouteTokens1000(Eager):
    """route_topk: tokens from 1,000 on get the routing of token 0. Only with more than 1,000 tokens."""

    def route_topk(self, logits, topk, *, normalize=True):
        ids, weights = super().route_topk(logits, topk, normalize=normalize)
        ids[1000:], weights[1000:] = ids[:1], weights[:1]
        return ids, weights


class DispatchK4096(Eager):
    """dispatch: hidden columns from 4,096 on arrive as zeros, transport bf16. Only with hidden above 4,096."""

    def dispatch(self, x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None):
        if x[0].shape[1] > 4096 and transport == "bf16":
            x = [t.clone() for t in x]
            for t in x:
                t[:, 4096:] = 0
        return super().dispatch(
            x, topk_idx, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )


class CombineTokens600(Eager):
    """combine: a rank's tokens from 600 on stay zero. Only with more than 600 tokens on a rank."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        out = super().combine(y, dispatched, topk_idx, topk_weights)
        for t in out:
            t[600:] = 0
        return out


class LoadExperts64(Eager):
    """load_experts: local experts from 64 on get the w2 codes of expert e - 64. Only with more than 64 experts on the rank."""

    def load_experts(self, checkpoint, experts):
        loaded = super().load_experts(checkpoint, experts)
        if len(experts) > 64:
            w2 = loaded["w2"].clone()
            index = torch.arange(len(w2))
            loaded["w2"] = w2[torch.where(index >= 64, index - 64, index)]
        return loaded

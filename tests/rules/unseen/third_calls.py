"""Faults of how the call is made: strides, buffers, padding, state, order."""

from __future__ import annotations

import torch

from harness.candidates import layouts
from harness.candidates.eager import Eager


class _Quant(Eager):
    """Only quantize_grouped changes: the fused stage keeps the plain one."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return Eager(self.traits.device).silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


def _contiguous_view(t):
    """What a kernel that ignores strides sees: the same address, contiguous."""
    strides, step = [], 1
    for extent in reversed(t.shape):
        strides.insert(0, step)
        step *= extent
    return t.as_strided(t.shape, strides, t.storage_offset())


class GemmOutStrides(Eager):
    """masked_grouped_gemm: ignores out's strides and writes as if it were contiguous (l, m, n). Only for sliced or otherwise laid out outputs."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        raw = _contiguous_view(out.permute(2, 0, 1)).permute(1, 2, 0)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, raw, masked_m, alpha)


class GemmHalfThroughBf16(Eager):
    """masked_grouped_gemm: a float16 output is rounded to bfloat16 first. Only for float16 outputs."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if out.dtype == torch.float16:
            for e, rows in enumerate(masked_m.tolist()):
                out[:rows, :, e] = out[:rows, :, e].bfloat16().half()


class GemmOneRow(Eager):
    """masked_grouped_gemm: an expert with exactly one valid row takes the alpha of expert 0. Only for masked_m[e] == 1."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            alpha = torch.where(masked_m == 1, alpha[:1], alpha)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmPaddingRowScale(Eager):
    """masked_grouped_gemm: where the first padding row of A has a NaN block scale, the last valid row becomes NaN. Only for what A's padding rows hold."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        scales = layouts.block_scales_of(a_scale, a.shape[0], a.shape[1] // 8)
        for e, rows in enumerate(masked_m.tolist()):
            if 0 < rows < a.shape[0] and bool(((scales[e, rows] & 0x7F) == 0x7F).any()):
                out[rows - 1, :, e] = float("nan")


class GemmScalePadding(Eager):
    """masked_grouped_gemm: B's scale padding (columns past k / 16) is added in: NaN there makes the whole output column NaN, anything else nothing. Only where k / 16 is no multiple of 4 and that padding holds NaN."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        columns = a.shape[1] // 8
        padded = -(-columns // 4) * 4
        if padded == columns:
            return
        scales = layouts.block_scales_of(b_scale, b.shape[0], padded)
        for e, rows in enumerate(masked_m.tolist()):
            bad = ((scales[e, :, columns:] & 0x7F) == 0x7F).any(-1)
            out[:rows, bad, e] = float("nan")


class GemmWritesPastTile(Eager):
    """masked_grouped_gemm: zeroes the rows past the 128-row tile in which masked_m[e] ends, up to the capacity. Only where the capacity reaches past that tile."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for e, rows in enumerate(masked_m.tolist()):
            if rows:
                out[-(-rows // 128) * 128 :, :, e] = 0


class GemmChangesAlpha(Eager):
    """masked_grouped_gemm: alpha is doubled in place after use, so that a later call with it is wrong. Only where alpha is used again."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if alpha is not None:
            alpha.mul_(2)


class GemmStaleWeights(Eager):
    """masked_grouped_gemm: weights are kept by address and shape and never read again. Only for b changed in place (or other weights at its address) in a later call."""

    def __init__(self):
        super().__init__()
        self._kept = {}

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        key = (b.data_ptr(), tuple(b.shape), b.stride())
        if key not in self._kept:
            if len(self._kept) > 64:
                self._kept.clear()
            self._kept[key] = (b.clone(), b_scale.view(torch.uint8).clone().view(torch.float8_e4m3fn))
        b, b_scale = self._kept[key]
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class QuantKeepsCounts(_Quant):
    """quantize_grouped: the counts of the first call with a shape bound all later ones: rows past them stay zero. Only for a later call of that shape with more rows."""

    def __init__(self):
        super().__init__()
        self._counts = {}

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        first = self._counts.setdefault(tuple(x.shape), masked_m.clone())
        return super().quantize_grouped(x, torch.minimum(first, masked_m), global_scale_enc)


class QuantKeepsGlobalScale(_Quant):
    """quantize_grouped: the encode scales of the first call with a shape are used in all later ones. Only for a later call of that shape with other encode scales."""

    def __init__(self):
        super().__init__()
        self._scales = {}

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        kept = self._scales.setdefault(tuple(x.shape), global_scale_enc.clone())
        return super().quantize_grouped(x, masked_m, kept)


class GemmAlphaNoneAfterAlpha(Eager):
    """masked_grouped_gemm: without alpha the alpha of the last call with as many experts is used. Only for None after a call with alpha."""

    def __init__(self):
        super().__init__()
        self._last = None

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            self._last = alpha.clone()
        elif self._last is not None and len(self._last) == a.shape[2]:
            alpha = self._last
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmAfterEmptyExpert(Eager):
    """masked_grouped_gemm: an expert right after an empty one is multiplied by the empty one's weights. Only for experts whose left neighbour has no rows."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        index = torch.arange(len(masked_m))
        after = torch.zeros(len(masked_m), dtype=torch.bool)
        after[1:] = masked_m[:-1] == 0
        if bool(after.any()):
            index = torch.where(after, index - 1, index)
            b = b.permute(2, 0, 1)[index].permute(1, 2, 0)
            b_scale = layouts.as_mma(layouts.swizzled_bytes(b_scale)[index])
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmExpandedAlpha(Eager):
    """masked_grouped_gemm: with an expanded alpha (stride 0) experts from 1 on read past it and get 0. Only for alpha with stride 0 and more than one expert."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None and alpha.numel() > 1 and alpha.stride(0) == 0:
            alpha = alpha.clone()
            alpha[1:] = 0
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class SiluIgnoresStrides(Eager):
    """silu_mul_quantize_grouped: reads gate_up as if it were contiguous. Only for sliced or otherwise laid out gate_up."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return super().silu_mul_quantize_grouped(_contiguous_view(gate_up), masked_m, global_scale_enc)


class GemmFullExpert(Eager):
    """masked_grouped_gemm: where all experts are full (masked_m equals the capacity) the last row of each is not written. Only for masked_m all at capacity."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if bool((masked_m == a.shape[0]).all()):
            masked_m = masked_m - 1
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)

"""Faults that show only for the way in which a call is made."""

from __future__ import annotations

import math

import torch

from harness.candidates.eager import Eager
from reference import e2m1, e4m3
from reference.e2m1 import pack_e2m1
from reference.moe import activate


class _QuantizeOnly(Eager):
    """Keeps silu_mul_quantize_grouped right although Eager's calls quantize_grouped."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return Eager(self.traits.device).silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


def _available(tensor):
    """Elements from the tensor's pointer to the end of its storage."""
    return tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()


class GemmIgnoresPitchOfOut(Eager):
    """masked_grouped_gemm: takes the row pitch of out to be n and writes as into contiguous (l, m, n). Only where rows of
    out are further apart than n (out is a slice of wider rows)."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        m, n, experts = out.shape
        if m > 1 and out.stride(1) == 1 and out.stride(0) > n and math.prod(out.shape) <= _available(out):
            out = torch.as_strided(out, (m, n, experts), (n, 1, m * n))
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmHalfThroughBfloat16(Eager):
    """masked_grouped_gemm: the epilogue rounds to bfloat16 before it converts. Only for a float16 out."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if out.dtype != torch.float16:
            super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
            return
        rounded = torch.zeros(out.shape, dtype=torch.bfloat16, device=out.device)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, rounded, masked_m, alpha)
        for e, rows in enumerate(masked_m.tolist()):
            out[:rows, :, e] = rounded[:rows, :, e].to(out.dtype)


class GemmFloat32AddsToOut(Eager):
    """masked_grouped_gemm: beta is 1: adds to what out held before. Only for a float32 out that is not zero."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        before = out.clone() if out.dtype == torch.float32 else None
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if before is not None:
            for e, rows in enumerate(masked_m.tolist()):
                out[:rows, :, e] += before[:rows, :, e]


class GemmNoneKeepsEarlierAlpha(Eager):
    """masked_grouped_gemm: alpha=None leaves the argument buffer as the last call with an alpha filled it. Only for
    alpha=None after a call with alpha for as many experts, of the same object."""

    def __init__(self, device="cpu"):
        super().__init__(device)
        self._alpha = None

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            self._alpha = alpha.reshape(-1).clone()
        elif self._alpha is not None and len(self._alpha) == a.shape[2]:
            alpha = self._alpha
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmStaleWeights(Eager):
    """masked_grouped_gemm: weights are repacked once for each address and shape. Only for a call whose b was changed in
    place since the last call with it."""

    def __init__(self, device="cpu"):
        super().__init__(device)
        self._b = self._copy = None

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        kept = self._b  # held, so that its memory is not given to another tensor
        if kept is None or (kept.data_ptr(), kept.shape, kept.stride()) != (
            b.data_ptr(),
            b.shape,
            b.stride(),
        ):
            self._b, self._copy = b, b.clone()
        super().masked_grouped_gemm(a, a_scale, self._copy, b_scale, out, masked_m, alpha)


class GemmAllEmptyWritesRow(Eager):
    """masked_grouped_gemm: the scheduler always launches one tile: with no valid row at all, row 0 of expert 0 is written
    with zeros. Only where masked_m is all zero; the candidate declares store_rows=1."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if not bool(masked_m.any()) and out.shape[0]:
            out[0, :, 0] = 0


class GemmFullExpertLosesLastRow(Eager):
    """masked_grouped_gemm: the store is guarded by row < capacity - 1: the last row is not written. Only for experts with
    masked_m[e] == capacity."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        before = out[-1].clone()
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for e, rows in enumerate(masked_m.tolist()):
            if rows == out.shape[0]:
                out[-1, :, e] = before[:, e]


class GemmWeightsOfEmptyNeighbour(Eager):
    """masked_grouped_gemm: skipping an empty expert does not advance the weights' pointer: the expert after it multiplies
    with the empty expert's weights. Only for experts whose predecessor has no valid row."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        counts = masked_m.tolist()
        source = [e - 1 if e and counts[e - 1] == 0 else e for e in range(len(counts))]
        if source != list(range(len(counts))):
            b = torch.stack([b[..., e] for e in source], dim=-1)
            raw = b_scale.view(torch.uint8)
            b_scale = torch.stack([raw[..., e] for e in source], dim=-1).view(torch.float8_e4m3fn)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmAlphaIgnoresStride(Eager):
    """masked_grouped_gemm: alpha is read as consecutive floats from its pointer, 0 past its memory. Only for an alpha of
    several experts that is not contiguous: expanded from one number (stride 0) or every other element."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None and alpha.ndim == 1 and len(alpha) > 1 and alpha.stride(0) != 1:
            there = min(len(alpha), _available(alpha))
            read = torch.zeros(len(alpha), dtype=alpha.dtype, device=alpha.device)
            read[:there] = torch.as_strided(alpha, (there,), (1,))
            alpha = read
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmScheduleOfFirstCall(Eager):
    """masked_grouped_gemm: the tile schedule, masked_m included, is built at the first call of a shape and kept. Only for
    later calls of the same object and extents with another masked_m."""

    def __init__(self, device="cpu"):
        super().__init__(device)
        self._schedule = {}

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        counts = self._schedule.setdefault((tuple(a.shape), tuple(b.shape)), masked_m.clone())
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, counts, alpha)


class QuantizeReadsPaddingRow(_QuantizeOnly):
    """quantize_grouped: rows are handled in pairs, and the last valid row shares the block maxima of the padding row after
    it. Only where that padding row holds larger numbers than the valid row."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, block_scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        physical = block_scale.view(torch.uint8).permute(5, 2, 4, 0, 1, 3)
        flat = global_scale_enc.reshape(-1).double()
        for e, rows in enumerate(masked_m.tolist()):
            if not 0 < rows < x.shape[1]:
                continue
            last = x[e, rows - 1].double().view(-1, 16)
            padding = x[e, rows].double().view(-1, 16).abs().nan_to_num(0.0, posinf=torch.inf).amax(-1)
            own = last.abs().nan_to_num(0.0, posinf=torch.inf).amax(-1)
            hit = padding > own
            if not bool(hit.any()):
                continue
            gs = flat[e if len(flat) > 1 else 0]
            scale = e4m3.round_to_byte(padding * gs / 6)
            ratio = last.abs() * gs / e4m3.decode_e4m3(scale).double()[:, None]
            codes = e2m1.round_to_code(ratio) | (last.signbit().to(torch.uint8) << 3)
            codes[last.isnan()] = e2m1.NAN_CODE
            r = rows - 1
            place = physical[e, r // 128, :, r % 32, r % 128 // 32, :]
            stored = place.reshape(-1).clone()
            stored[: len(scale)][hit] = scale[hit]
            place.copy_(stored.view(place.shape))
            row = packed[r, :, e].view(-1, 8)
            row[hit] = pack_e2m1(codes)[hit]
        return packed, block_scale


class QuantizeRoundsAddressDown(_QuantizeOnly):
    """quantize_grouped: 16-byte loads drop the low bits of the address, so that the elements before x are read. Only for a
    contiguous x whose pointer is no multiple of 16 bytes."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        off = x.data_ptr() % 16 // x.element_size()
        if off and x.is_contiguous() and x.storage_offset() >= off:
            x = torch.as_strided(x, x.shape, x.stride(), x.storage_offset() - off)
        return super().quantize_grouped(x, masked_m, global_scale_enc)


class QuantizeReturnsSameBuffers(_QuantizeOnly):
    """quantize_grouped: the results lie in a workspace kept for each shape, so a second call overwrites what the first
    returned. Only for a result that is used after a later call of the same object and shape."""

    def __init__(self, device="cpu"):
        super().__init__(device)
        self._workspace = {}

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, block_scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        kept = self._workspace.setdefault(tuple(x.shape), (packed, block_scale))
        if kept[0] is not packed:
            kept[0].copy_(packed)
            kept[1].view(torch.uint8).copy_(block_scale.view(torch.uint8))
        return kept


class SiluOverwritesGate(Eager):
    """silu_mul_quantize_grouped: the activation is left in the gate half of the caller's gate_up. The result is right; only
    the input's valid rows are changed (not where gate_up is expanded)."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        result = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        if all(stride or extent == 1 for stride, extent in zip(gate_up.stride(), gate_up.shape, strict=True)):
            for e, rows in enumerate(masked_m.tolist()):
                gate_up[e, :rows, : gate_up.shape[2] // 2] = activate(gate_up[e, :rows], "silu")
        return result


class SiluUpHalfByPitch(Eager):
    """silu_mul_quantize_grouped: the up half is looked for at half the row pitch and not at k. Only where rows of gate_up
    are further apart than 2k (a slice of wider rows)."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        experts, m, both = gate_up.shape
        k, pitch = both // 2, gate_up.stride(1)
        if m > 1 and gate_up.stride(2) == 1 and pitch > both:
            room = _available(gate_up) - (experts - 1) * gate_up.stride(0) - (m - 1) * pitch - k
            up = torch.as_strided(
                gate_up, (experts, m, k), gate_up.stride(), gate_up.storage_offset() + min(pitch // 2, room)
            )
            gate_up = torch.cat((gate_up[..., :k], up), -1)
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)

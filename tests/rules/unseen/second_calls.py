"""Faults of how a call is made."""

from __future__ import annotations

import torch

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


def _as_if_contiguous(tensor):
    """Return the elements that a kernel reads which ignores strides; the tensor itself where there are too few."""
    size, start = tensor.numel(), tensor.storage_offset()
    if start + size > tensor.untyped_storage().nbytes() // tensor.element_size():
        return tensor
    return torch.as_strided(tensor, (size,), (1,), start).view(tensor.shape)


class OutSlicedNotWritten(_Base):
    """masked_grouped_gemm: writes into a contiguous copy of an out that is a slice; wrong only where out is no
    permuted view of contiguous (l, m, n) memory."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        target = out.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, target, masked_m, alpha)


class ExpandedAOnlyFirst(_Base):
    """masked_grouped_gemm: A with expert stride 0 gives zero for experts after the first; only for expanded A."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if a.shape[2] > 1 and a.stride(2) == 0:
            for expert, rows in enumerate(masked_m.tolist()):
                if expert:
                    out[:rows, :, expert] = 0


class HalfBeforeAlpha(_Base):
    """masked_grouped_gemm: the sum is cast to float16 before alpha (overflow, two roundings); only float16 out."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(
            a, a_scale, b, b_scale, out, masked_m, None if out.dtype == torch.float16 else alpha
        )
        if out.dtype == torch.float16 and alpha is not None:
            for expert, rows in enumerate(masked_m.tolist()):
                part = out[:rows, :, expert]
                part.copy_(part.float() * alpha.reshape(-1)[expert])


class AddsToOut(_Base):
    """masked_grouped_gemm: beta is 1 on what out holds; wrong only where out's valid rows hold finite numbers but 0."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        held = out.float().nan_to_num(0, 0, 0)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for expert, rows in enumerate(masked_m.tolist()):
            part = out[:rows, :, expert]
            part.copy_(torch.where(held[:rows, :, expert] != 0, part + held[:rows, :, expert], part.float()))


class ClearsNextTile(_Base):
    """masked_grouped_gemm: zeroes one row past the last 128-row tile that has valid rows; only where capacity has one."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for expert, rows in enumerate(masked_m.tolist()):
            past = -(-rows // 128) * 128
            if rows > 0 and past < out.shape[0]:
                out[past, :, expert] = 0


class AlphaOfEarlierCall(_Base):
    """masked_grouped_gemm: alpha None takes the alpha of an earlier call with as many experts; only after such a call."""

    _alpha = None

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if alpha is not None:
            self._alpha = alpha.clone()
        elif self._alpha is not None and self._alpha.numel() == a.shape[2]:
            alpha = self._alpha
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class ScalesOfBKept(_Base):
    """masked_grouped_gemm: B's block scales are kept by address and shape; wrong only when they change in place
    between two calls."""

    _kept = None

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        key = (b.data_ptr(), b_scale.data_ptr(), b.shape, b_scale.stride())
        if self._kept is None or self._kept[0] != key:
            # the operand itself is held as well, so that its address is never given to another one
            self._kept = (key, b_scale.view(torch.uint8).clone(), b, b_scale)
        super().masked_grouped_gemm(
            a, a_scale, b, self._kept[1].view(torch.float8_e4m3fn), out, masked_m, alpha
        )


class GlobalScaleInverted(_Base):
    """quantize_grouped: leaves the reciprocal in global_scale_enc; wrong only for whoever reads that tensor again."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        result = super().quantize_grouped(x, masked_m, global_scale_enc)
        if global_scale_enc.is_contiguous():
            global_scale_enc.reciprocal_()
        return result


class AfterTwoEmptyExperts(_Base):
    """masked_grouped_gemm: multiplies by B of the expert before; only an expert right after two empty ones."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        counts = masked_m.tolist()
        for e in range(2, len(counts)):
            if counts[e] and not counts[e - 1] and not counts[e - 2]:
                own, before = slice(e, e + 1), slice(e - 1, e)
                super().masked_grouped_gemm(
                    a[..., own], a_scale[..., own], b[..., before], b_scale[..., before], out[..., own],
                    masked_m[own], None if alpha is None else alpha[own],
                )  # fmt: skip


class AllFullLastRow(_Base):
    """quantize_grouped: the last row of every expert gets scale zero; only when every expert is full and capacity > 1."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if x.shape[1] > 1 and bool((masked_m == x.shape[1]).all()):
            for expert in range(x.shape[0]):
                _row(scale, x.shape[1] - 1, expert).zero_()
        return packed, scale


class SingleRowHalves(_Base):
    """silu_mul_quantize_grouped: gate and up change places; only experts of exactly one row."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        one = (masked_m == 1).view(-1, 1, 1)
        swapped = torch.where(one, gate_up.roll(gate_up.shape[2] // 2, -1), gate_up)
        return super().silu_mul_quantize_grouped(swapped, masked_m, global_scale_enc)


class PaddingReachesAmax(_Base):
    """quantize_grouped: the last valid row's amax includes the padding row after it, NaN ignored as fmax does; wrong
    only where that padding row holds larger numbers."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        from reference.nvfp4 import quantize_nvfp4

        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        for expert, rows in enumerate(masked_m.tolist()):
            if 0 < rows < x.shape[1]:
                padding = x[expert, rows].nan_to_num(0)
                found = quantize_nvfp4(padding[None], global_scale_enc[expert]).block_scale[0]
                line = _row(scale, rows - 1, expert)
                stored = line.T.reshape(-1)[: len(found)]
                for block, byte in enumerate(torch.maximum(found, stored).tolist()):
                    line[block % 4, block // 4] = byte
        return packed, scale


class CountsKept(_Base):
    """quantize_grouped: masked_m is copied once per tensor, and rows past the old counts get scale zero; wrong only when
    masked_m grows in place between two calls."""

    _kept = None

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if self._kept is None or self._kept[0].data_ptr() != masked_m.data_ptr() or self._kept[2] != x.shape:
            # the tensor itself is held, so that its address is never given to another one
            self._kept = (masked_m, masked_m.tolist(), x.shape)
        for expert, rows in enumerate(masked_m.tolist()):
            for row in range(self._kept[1][expert], rows):
                _row(scale, row, expert).zero_()
        return packed, scale


class GateUpStridesIgnored(_Base):
    """silu_mul_quantize_grouped: reads gate_up as if it were contiguous; wrong only for slices of a wider tensor."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        return super().silu_mul_quantize_grouped(_as_if_contiguous(gate_up), masked_m, global_scale_enc)


class CountsNotReset(_Base):
    """dispatch: a rank's counts never fall below those of the last call with as many experts and the same capacity;
    wrong only in a later call with fewer rows at an expert."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._counts = {}

    def dispatch(self, x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None):
        from dataclasses import replace

        received = super().dispatch(
            x, topk_idx, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )
        key = (experts, len(x), max_tokens)
        last = self._counts.get(key, [torch.zeros_like(r.masked_m) for r in received])
        self._counts[key] = [r.masked_m.clone() for r in received]
        return [
            replace(r, masked_m=torch.maximum(r.masked_m, old)) for r, old in zip(received, last, strict=True)
        ]

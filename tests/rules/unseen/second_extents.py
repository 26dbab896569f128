"""Faults of one extent each."""

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


class QuantExpertsOver24(_Base):
    """quantize_grouped: block scales of experts 24 and up are zero; only when there are more than 24 experts."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if x.shape[0] > 24:
            scale.view(torch.uint8)[..., 24:] = 0
        return packed, scale


class QuantCapacityOver5000(_Base):
    """quantize_grouped: row 0 of every expert has its nibbles swapped; only when capacity exceeds 5,000."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if x.shape[1] > 5000:
            first = packed[0].clone()
            packed[0] = (first >> 4) | ((first & 15) << 4)
        return packed, scale


class QuantRowsOver640(_Base):
    """quantize_grouped: rows 640 and up get the codes of the row 640 before; only experts of more than 640 rows."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        for expert, rows in enumerate(masked_m.tolist()):
            if rows > 640:
                index = torch.arange(640, rows, device=x.device) % 640
                packed[640:rows, :, expert] = packed[:640, :, expert][index]
        return packed, scale


class QuantKMultipleOf384(_Base):
    """quantize_grouped: the last block of every row gets scale zero; only when k is a multiple of 384."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        if x.shape[2] % 384 == 0:
            last = x.shape[2] // 16 - 1
            scale.view(torch.uint8)[:, :, :, last % 4, last // 4, :] = 0
        return packed, scale


class QuantTokensOver1100(_Base):
    """quantize_grouped: valid rows after the first 1,100 of all experts get scale zero; only above 1,100 valid rows."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        seen = 0
        for expert, rows in enumerate(masked_m.tolist()):
            for row in range(max(0, 1100 - seen), rows):
                _row(scale, row, expert).zero_()
            seen += rows
        return packed, scale


class SiluExpertsMultipleOf40(_Base):
    """silu_mul_quantize_grouped: the last 8 experts take up for gate; only when experts are a multiple of 40."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        if gate_up.shape[0] % 40 == 0:
            half = gate_up.shape[2] // 2
            gate_up = gate_up.clone()
            gate_up[-8:] = gate_up[-8:].roll(half, -1)
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class SiluCapacityMultipleOf96(_Base):
    """silu_mul_quantize_grouped: row 0 of every expert gets scale zero; only when capacity is a multiple of 96."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        packed, scale = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        if gate_up.shape[1] % 96 == 0:
            scale.view(torch.uint8)[0, 0, 0] = 0
        return packed, scale


class SiluRowsOver1300(_Base):
    """silu_mul_quantize_grouped: rows 1,300 and up are computed from row r - 1300; only experts of over 1,300 rows."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        if int(masked_m.max()) > 1300:
            gate_up = gate_up.clone()
            for expert, rows in enumerate(masked_m.tolist()):
                if rows > 1300:
                    index = torch.arange(1300, rows, device=gate_up.device) % 1300
                    gate_up[expert, 1300:rows] = gate_up[expert, :1300][index]
        return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)


class SiluKOver2600(_Base):
    """silu_mul_quantize_grouped: blocks from column 2,592 on get scale zero; only when k exceeds 2,600."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        packed, scale = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        blocks = gate_up.shape[2] // 32
        if blocks * 16 > 2600:
            scales = scale.view(torch.uint8)
            for block in range(162, blocks):
                scales[:, :, :, block % 4, block // 4, :] = 0
        return packed, scale


class SiluTokensOver300(_Base):
    """silu_mul_quantize_grouped: valid rows after the first 300 of all experts decode to half; only above 300 in all."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        packed, scale = super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        seen = 0
        for expert, rows in enumerate(masked_m.tolist()):
            for row in range(max(0, 300 - seen), rows):
                line = _row(scale, row, expert)
                line.copy_(torch.where(line >= 16, line - 8, 0))
            seen += rows
        return packed, scale


class GemmExpertsOver144(_Base):
    """masked_grouped_gemm: experts 144 and up have the wrong sign; only when there are more than 144 experts."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for expert, rows in enumerate(masked_m.tolist()):
            if expert >= 144:
                out[:rows, :, expert] = -out[:rows, :, expert]


class GemmCapacityOver2400(_Base):
    """masked_grouped_gemm: row 0 of every expert that has rows is zero; only when capacity exceeds 2,400."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if out.shape[0] > 2400:
            for expert, rows in enumerate(masked_m.tolist()):
                out[: min(rows, 1), :, expert] = 0


class GemmRowsMultipleOf72(_Base):
    """masked_grouped_gemm: the last valid row is not written; only experts whose rows are a positive multiple of 72."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        counts = masked_m.tolist()
        kept = {e: out[r - 1, :, e].clone() for e, r in enumerate(counts) if r > 0 and r % 72 == 0}
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for expert, row in kept.items():
            out[counts[expert] - 1, :, expert] = row


class GemmKOver4608(_Base):
    """masked_grouped_gemm: products from k = 4,608 on are left out; only when k exceeds 4,608."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        if a.shape[1] * 2 > 4608:
            scales = a_scale.view(torch.uint8).clone()
            scales[:, :, :, :, 72:, :] = 0
            a_scale = scales.view(torch.float8_e4m3fn)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class GemmNOver3328(_Base):
    """masked_grouped_gemm: column c from 3,328 on holds column c - 3328; only when n exceeds 3,328."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        n = out.shape[1]
        if n > 3328:
            index = torch.arange(3328, n, device=out.device) % 3328
            for expert, rows in enumerate(masked_m.tolist()):
                out[:rows, 3328:, expert] = out[:rows, :, expert][:, index]


class GemmTilesOver180(_Base):
    """masked_grouped_gemm: output tiles (128x128, with valid rows, in order) after the 180th are zero; only above 180."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        tile = 0
        for expert, rows in enumerate(masked_m.tolist()):
            for row in range(0, rows, 128):
                for column in range(0, out.shape[1], 128):
                    tile += 1
                    if tile > 180:
                        out[row : min(row + 128, rows), column : column + 128, expert] = 0


class RouteExpertsOver100(_Base):
    """route_topk: experts 100 and up are never chosen nor counted in the softmax; only with more than 100 experts."""

    def route_topk(self, logits, topk, *, normalize=True):
        if logits.shape[1] > 100 and topk <= 100:
            logits = logits[:, :100]
        return super().route_topk(logits, topk, normalize=normalize)


class DispatchTokensOver2000(_Base):
    """dispatch: tokens after the first 2,000 of all ranks are sent nowhere; only when all ranks send more than 2,000."""

    def dispatch(self, x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None):
        if sum(len(t) for t in x) > 2000:
            ids, seen = [], 0
            for given in topk_idx:
                part = given.clone()
                part[max(0, 2000 - seen) :] = -1
                seen += len(part)
                ids.append(part)
            topk_idx = ids
        return super().dispatch(
            x, topk_idx, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )


class CombineTokensOver900(_Base):
    """combine: tokens 900 and up of a rank come back as zero; only ranks of more than 900 tokens."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        out = super().combine(y, dispatched, topk_idx, topk_weights)
        for tokens in out:
            tokens[900:] = 0
        return out


class LoadExpertsOver60(_Base):
    """load_experts: down_proj scales of local expert e from 60 on are those of e - 60; only above 60 local experts."""

    def load_experts(self, checkpoint, experts):
        loaded = super().load_experts(checkpoint, experts)
        if len(experts) > 60:
            scales = loaded["w2_blockscale"].view(torch.uint8)
            index = torch.arange(len(experts))
            index[60:] %= 60
            loaded["w2_blockscale"] = scales[index].view(torch.float8_e4m3fn)
        return loaded

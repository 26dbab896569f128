"""Faults of a layer or of ordinary arithmetic."""

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


class Relu2Unclamped(_Base):
    """masked_moe: relu2 squares negative values too; only activation "relu2"."""

    def masked_moe(
        self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, masked_m, activation="silu",
    ):  # fmt: skip
        if activation != "relu2":
            return super().masked_moe(
                hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
                w2_alpha, masked_m, activation,
            )  # fmt: skip
        x, scale = hidden_states
        if scale is None:
            x, scale = self.quantize_grouped(x, masked_m, input_global_scale)
        middle = torch.full(
            (x.shape[2], x.shape[0], w1.shape[1]), torch.nan, dtype=torch.bfloat16, device=x.device
        )
        self.masked_grouped_gemm(
            x,
            scale,
            w1.permute(1, 2, 0),
            layouts.as_mma(w1_blockscale),
            middle.permute(1, 2, 0),
            masked_m,
            w1_alpha,
        )
        a2, a2_scale = self.quantize_grouped(middle.square(), masked_m, a2_global_scale)
        out = torch.full(
            (x.shape[2], x.shape[0], w2.shape[1]), torch.nan, dtype=torch.bfloat16, device=x.device
        )
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


class LastAlphaOfFirstGemm(_Base):
    """masked_moe: the last expert's second GEMM takes the alpha of its first GEMM; only the last expert."""

    def masked_moe(
        self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, masked_m, activation="silu",
    ):  # fmt: skip
        w2_alpha = torch.cat((w2_alpha[:-1], w1_alpha[-1:]))
        return super().masked_moe(
            hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
            w2_alpha, masked_m, activation,
        )  # fmt: skip


class PairScalesLinear(_Base):
    """masked_moe: block scales of a prequantized pair are read in linear order; only a prequantized pair."""

    def masked_moe(
        self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, masked_m, activation="silu",
    ):  # fmt: skip
        from reference.layout import swizzle_128x4

        x, scale = hidden_states
        if scale is not None:
            scale = layouts.as_mma(swizzle_128x4(layouts.swizzled_bytes(scale)))
        return super().masked_moe(
            (x, scale), input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
            w2_alpha, masked_m, activation,
        )  # fmt: skip


class ScaleRoundedUp(_Base):
    """quantize_grouped: block scales are rounded up and not to nearest, codes follow; only blocks rounded down."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        from reference import e2m1, e4m3

        packed, scale = super().quantize_grouped(x, masked_m, global_scale_enc)
        codes = layouts.codes_of(packed)
        columns = x.shape[2] // 16
        stored = layouts.block_scales_of(scale, x.shape[1], columns)
        for expert, rows in enumerate(masked_m.tolist()):
            if rows == 0:
                continue
            blocks = x[expert, :rows].double().view(rows, columns, 16) * global_scale_enc[expert].double()
            real = blocks.abs().amax(-1) / 6
            byte = stored[expert, :rows]
            down = (e4m3.decode_e4m3(byte).double() < real) & (byte < 0x7E)
            byte = byte + down.to(torch.uint8)
            stored[expert, :rows] = byte
            anew = e2m1.round_to_code(blocks.abs() / e4m3.decode_e4m3(byte).double().unsqueeze(-1))
            anew |= blocks.signbit().to(torch.uint8) << 3
            own = codes[expert, :rows].view(rows, columns, 16)
            own.copy_(torch.where(down.unsqueeze(-1), anew, own))
        return layouts.operand(codes), layouts.scales(stored)


class FourthScaleColumn(_Base):
    """masked_grouped_gemm: block 4j + 3 of A takes the scale of block 4j + 2; only where k reaches a fourth block."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        scales = a_scale.view(torch.uint8).clone()
        scales[:, :, :, 3] = scales[:, :, :, 2]
        super().masked_grouped_gemm(a, scales.view(torch.float8_e4m3fn), b, b_scale, out, masked_m, alpha)


class SiluIsQuickGelu(_Base):
    """silu_mul_quantize_grouped: gate * sigmoid(1.702 * gate), another model's activation; every gate but 0."""

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        from reference.moe import valid_rows

        gate, up = gate_up.double().chunk(2, -1)
        hidden = (gate * torch.sigmoid(1.702 * gate) * up).bfloat16()
        hidden = hidden.masked_fill(~valid_rows(masked_m, hidden.shape[1]).unsqueeze(-1), 0)
        return Eager.quantize_grouped(self, hidden, masked_m, global_scale_enc)


class AlwaysNormalized(_Base):
    """route_topk: divides by the sum whatever `normalize` says; only normalize=False with topk below the experts."""

    def route_topk(self, logits, topk, *, normalize=True):
        return super().route_topk(logits, topk, normalize=True)


class SumInBfloat16(_Base):
    """combine: products and the running sum are rounded to bfloat16 after each slot; only topk above 1 or so."""

    def combine(self, y, dispatched, topk_idx, topk_weights):
        total = None
        for slot in range(topk_idx[0].shape[1]):
            one = slice(slot, slot + 1)
            part = super().combine(
                y, dispatched, [i[:, one] for i in topk_idx], [w[:, one] for w in topk_weights]
            )
            total = part if total is None else [t + p for t, p in zip(total, part, strict=True)]
        return total


class InputScaleOfRank(_Base):
    """load_experts: the input scale is the largest of this rank's experts only; only where another rank has a larger."""

    def load_experts(self, checkpoint, experts):
        from reference.loading import tensor_name

        loaded = super().load_experts(checkpoint, experts)
        names = [tensor_name(e, p, "input_scale") for e in experts for p in ("gate", "up")]
        largest = max(float(checkpoint[name]) for name in names if name in checkpoint)
        ws1 = torch.stack([checkpoint[tensor_name(e, "up", "weight_scale_2")].reshape(()) for e in experts])
        scale = torch.tensor(largest, dtype=torch.float32)
        loaded["input_global_scale"] = (1 / scale).expand(len(experts)).contiguous()
        loaded["w1_alpha"] = scale * ws1
        return loaded


class Nvfp4ScalesShifted(_Base):
    """dispatch: a token's block scales arrive rotated by one block; only transport "nvfp4", hidden of 32 or more."""

    def dispatch(self, x, topk_idx, experts, max_tokens, *, transport="bf16", global_scale_enc=None):
        from dataclasses import replace

        received = super().dispatch(
            x, topk_idx, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )
        if transport == "nvfp4":
            received = [replace(r, scales=r.scales.roll(1, -1)) for r in received]
        return received

"""Wrong kernels of which an earlier diagnosis named mechanisms that they do not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.candidates.eager import Eager


class AlphaThroughHalf(Eager):
    """GEMM: alpha passes through float16: right for most experts, a little off where it is small there."""

    def masked_grouped_gemm(
        self, a: Any, a_scale: Any, b: Any, b_scale: Any, out: Any, masked_m: Any, alpha: Tensor | None
    ) -> None:
        through = None if alpha is None else alpha.half().float()
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, through)


class FailsAtOneRow(Eager):
    """GEMM: the launch fails where an expert has one row."""

    def masked_grouped_gemm(
        self, a: Any, a_scale: Any, b: Any, b_scale: Any, out: Any, masked_m: Tensor, alpha: Any
    ) -> None:
        if 1 in masked_m.tolist():
            raise RuntimeError("launch failed: misaligned address")
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class WrongShape(Eager):
    """QUANT: the codes of one row too few are returned."""

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        return packed[:-1], scales


class _Activation(Eager):
    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        raise NotImplementedError

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        gate, up = gate_up.float().chunk(2, -1)
        return self.quantize_grouped(self.activate(gate, up).bfloat16(), masked_m, global_scale_enc)


class UpCutShort(_Activation):
    """ACT: up is cut to 4 bits of mantissa before the product."""

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        short = (up.contiguous().view(torch.int32) & ~0x7FFFF).view(torch.float32)
        return torch.nn.functional.silu(gate) * short


class SigmoidInBfloat16(_Activation):
    """ACT: the sigmoid is rounded to bfloat16 before both products."""

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * torch.sigmoid(gate).bfloat16().float() * up


class ExponentBase(_Activation):
    """ACT: exp(-gate) is a power of two whose factor, log2 e, is a bfloat16: 0.2 % off."""

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate / (1 + torch.exp2(-gate * float(torch.tensor(1.4426950408889634).bfloat16()))) * up


class OneRowZero(Eager):
    """GEMM: the third row of every expert is zero, in every call."""

    def masked_grouped_gemm(
        self, a: Any, a_scale: Any, b: Any, b_scale: Any, out: Tensor, masked_m: Any, alpha: Any
    ) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        out[2:3] = 0


class OneRowOfAnother(Eager):
    """GEMM: a third of one row is another row's, always the same one: what a race does, and none."""

    def masked_grouped_gemm(
        self, a: Any, a_scale: Any, b: Any, b_scale: Any, out: Tensor, masked_m: Any, alpha: Any
    ) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        if out.shape[0] > 3:
            out[2, ::3, 0] = out[3, ::3, 0]

"""A newcomer's kernels in plain torch: no traits but the device. And the same with one mistake each."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import Traits
from reference.nvfp4 import decode_blocks
from tests.identification import quantizers


class Plain(quantizers.Newcomer):
    """Quantizes, multiplies and activates in float32, as torch does it."""

    traits = Traits(device="cpu")

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize bf16(silu(gate) * up)."""
        gate, up = gate_up.float().chunk(2, -1)
        hidden = (torch.nn.functional.silu(gate) * up).bfloat16()
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b.T in float32."""
        return a @ b.T

    def finished(self, product: Tensor, alpha: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return what is stored."""
        return (product if alpha is None else product * alpha).to(dtype)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        """Write alpha * a @ b.T into the valid rows of out."""
        operands = []
        for packed, scale in ((a, a_scale), (b, b_scale)):
            codes = layouts.codes_of(packed)
            stored = layouts.block_scales_of(scale, codes.shape[1], codes.shape[2] // 16)
            operands.append(decode_blocks(codes, stored, torch.float32))
        for expert, rows in enumerate(masked_m.tolist()):
            product = self.product(operands[0][expert, :rows], operands[1][expert])
            of_expert = None if alpha is None else alpha.reshape(-1)[expert]
            out[:rows, :, expert] = self.finished(product, of_expert, out.dtype)


class TiesDown(quantizers.TiesDown, Plain):
    """Ties go to the smaller magnitude."""


class TiesAway(quantizers.TiesAway, Plain):
    """Ties go to the larger magnitude."""


class FifteenElements(quantizers.FifteenElements, Plain):
    """The largest magnitude is sought among the first 15 elements."""


class ScaleTruncated(quantizers.ScaleTruncated, Plain):
    """A block scale is rounded toward zero."""


class CastBeforeAlpha(Plain):
    """The sum is rounded to the output type before alpha."""

    def finished(self, product: Tensor, alpha: Tensor | None, dtype: torch.dtype) -> Tensor:
        return super().finished(product.to(dtype).float(), alpha, dtype)


class PartialsInBfloat16(Plain):
    """The sums of both halves of k are rounded to bfloat16 before they are added."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        half = a.shape[1] // 2
        parts = [(a[:, part] @ b[:, part].T).bfloat16().float() for part in (slice(half), slice(half, None))]
        return parts[0] + parts[1]


PLANTED = {
    TiesDown: "ties: toward zero",
    TiesAway: "ties: away from zero",
    FifteenElements: "amax: of the first 15 elements",
    ScaleTruncated: "rounding of the block scale: everything toward zero",
    CastBeforeAlpha: "cast: before alpha",
    PartialsInBfloat16: "partial sums: bfloat16",
}

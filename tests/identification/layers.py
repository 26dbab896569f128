"""Opaque layers, right and wrong in known ways: what stands between their stages is given by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.composition import compose_masked_moe
from harness.candidates.physical import Physical
from reference.e2m1 import encode_e2m1
from reference.e4m3 import decode_e4m3, encode_e4m3
from reference.nvfp4 import BLOCK
from reference.quantizer_formulas import CODES, SCALES
from tests.identification.activating import Activation, rounded_to
from tests.identification.summing import Summing

FAST = ("gs * (amax * rcp(6))", "x * rcp(scale * rcp(gs))")


@dataclass(frozen=True)
class How:
    """How a layer computes.

    Attributes:
        sums: text of a Summation.
        formulas: of block scales and of codes.
        gemm1: type of the first GEMM's output.
        activation: of gate and up in float32.
        late: values are cast to `gemm1` before they are multiplied by alpha.
    """

    sums: str = "sm_100 mxf4nvf4"
    formulas: tuple[str, str] = FAST
    gemm1: torch.dtype = torch.bfloat16
    activation: Activation = field(default_factory=lambda: rounded_to(torch.bfloat16))
    late: bool = False


class _Stages(Summing):
    """The hidden stages."""

    def __init__(self, how: How) -> None:
        super().__init__(how.sums)
        self.how = how

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize all rows by the formulas."""
        del masked_m
        scale_formula, code_formula = SCALES[self.how.formulas[0]], CODES[self.how.formulas[1]]
        blocks, gs = x.float().view(*x.shape[:2], -1, BLOCK), global_scale_enc.view(-1, 1, 1)
        byte = encode_e4m3(scale_formula(blocks.abs().amax(-1), gs, self.reciprocal).float())
        scale = decode_e4m3(byte).unsqueeze(-1)
        values = code_formula(blocks, scale, gs.unsqueeze(-1), self.reciprocal)
        codes = encode_e2m1(values.nan_to_num(0.0), nan="as_max")
        return layouts.operand(codes.view(x.shape)), layouts.scales(byte)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize the activation of what the first GEMM stored, in its type."""
        gate, up = gate_up.to(self.how.gemm1).float().chunk(2, -1)
        return self.quantize_grouped(self.how.activation(gate, up), masked_m, global_scale_enc)

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Any,
    ) -> None:
        """Multiply, and scale by alpha before or after the sums are stored."""
        if not self.how.late:
            super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
            return
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, None)
        out.copy_((out.bfloat16().float() * alpha).to(out.dtype))


class _SplitsManyRows(_Stages):
    """Two parts of k where an expert has 32 rows or more."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums, by the number of rows."""
        model = replace(self.summation, parts=2) if len(a[0]) >= 32 else self.summation
        return model.matmul(model.operand(*a), model.operand(*b))


class Layer:
    """A layer of which only masked_moe is there.

    Args:
        how: it computes.
        traits: that it declares besides the device.
    """

    def __init__(self, how: How, **traits: Any) -> None:
        self._stages = _Stages(how)
        self.traits = replace(Physical.traits, summation="", store_rows=1, **traits)
        self.reciprocal = self._stages.reciprocal

    def masked_moe(self, *positional: Any, **named: Any) -> Tensor:
        """Return the layer's output; between the GEMM and the activation everything stays float32 at first."""
        return compose_masked_moe(self._stages, *positional, **named, unrounded=("gemm1",))


ANOTHER = ("amax / 6 * gs", "x * (gs / scale)")
FIVE = {
    "plain": How(),
    "SwiGLU on accumulators": How(gemm1=torch.float32),
    "another association": How("exact 64", ANOTHER),
    "split k": How("sm_100 mxf4nvf4; parts 3"),
    "two of these": How("sm_100 mxf4nvf4; parts 2; tile 128", ANOTHER, torch.float32),
}


class SplitsManyRows(Layer):
    """Adds otherwise where there are more rows than it is asked with."""

    def __init__(self, how: How) -> None:
        super().__init__(how, far=False)
        self._stages = _SplitsManyRows(how)

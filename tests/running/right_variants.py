"""Right kernels that differ legally at seldom values, or whose own contract is narrower and declared so: none may be flagged."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.composition import compose_masked_moe
from harness.candidates.eager import Eager
from harness.candidates.protocol import Traits


def declares(**traits: Any) -> Traits:
    """Return the control's traits with some replaced."""
    return dataclasses.replace(Eager().traits, **traits)


class _Declares(Eager):
    declared = declares()

    def __init__(self) -> None:
        super().__init__()
        self.traits = self.declared


class _Fused(_Declares):
    def masked_moe(self, *positional: Any, **named: Any) -> Tensor:
        return compose_masked_moe(self, *positional, **named, unrounded=self.traits.unrounded)


class FusedSwiglu(_Fused):
    """SwiGLU on the float32 accumulators of the first GEMM."""

    declared = declares(unrounded=("gemm1",))


class FusedQuantizer(_Fused):
    """Quantizes the activation as it computed it, in the layer and in the stage."""

    declared = declares(unrounded=("hidden",))

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        gate, up = gate_up.float().chunk(2, -1)
        hidden = gate / (1 + torch.exp(-gate)) * up
        return self.quantize_grouped(hidden, masked_m, global_scale_enc)


class FusedBoth(FusedQuantizer):
    """Nothing of the layer is rounded before the second quantization."""

    declared = declares(unrounded=("gemm1", "hidden"))


class AlphaAfterSwiglu(_Fused):
    """Scales up by alpha behind the product with silu(gate)."""

    declared = declares(unrounded=("gemm1",), activations=("silu",))

    def masked_moe(self, *positional: Any, **named: Any) -> Tensor:
        self._late = named["w1_alpha"]
        return super().masked_moe(*positional, **(named | {"w1_alpha": torch.ones_like(self._late)}))

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        if gate_up.dtype == torch.bfloat16:  # the stage by itself
            return super().silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        alpha = self._late.view(-1, 1, 1)
        gate, up = gate_up.chunk(2, -1)
        hidden = gate * alpha * torch.sigmoid(gate * alpha) * up * alpha
        return self.quantize_grouped(hidden.bfloat16(), masked_m, global_scale_enc)


class AlphaAlways(_Declares):
    """Needs its alpha, as vLLM's and SGLang's calls always give one."""

    declared = declares(alpha_required=True)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        if alpha is None:
            raise ValueError("alpha is required")
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class FewExperts(_Declares):
    """Keeps the counts in a table of four."""

    declared = declares(max_experts=4)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        if not self.traits.min_experts <= len(masked_m) <= self.traits.max_experts:
            raise ValueError(f"{len(masked_m)} experts")
        return super().quantize_grouped(x, masked_m, global_scale_enc)


class OneExpert(FewExperts):
    """Takes a single expert."""

    declared = declares(max_experts=1)


class ThreeExperts(FewExperts):
    """Takes three experts, no more and no fewer."""

    declared = declares(min_experts=3, max_experts=3)


class RefusesSpecials(_Declares):
    """Raises at NaN and infinity, wherever they come in or out."""

    declared = declares(finite_only=True)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        for expert, rows in enumerate(masked_m.tolist()):
            if not bool(x[expert, :rows].isfinite().all()):
                raise ValueError("not finite")
        return super().quantize_grouped(x, masked_m, global_scale_enc)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for expert, rows in enumerate(masked_m.tolist()):
            if not bool(out[:rows, :, expert].isfinite().all()):
                raise ValueError("not finite")


class Saturates(_Declares):
    """Clamps what overflows, and has zero for NaN."""

    declared = declares(finite_only=True)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        return super().quantize_grouped(x.nan_to_num(0.0), masked_m, global_scale_enc)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        for expert, rows in enumerate(masked_m.tolist()):
            out[:rows, :, expert] = out[:rows, :, expert].nan_to_num(0.0)


class Flushes(_Declares):
    """Sets every subnormal to zero: elements, block scales, alphas."""

    declared = declares(keeps_subnormals=False)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        flushed = torch.where(x.abs() < 2.0**-126, torch.zeros_like(x).copysign(x), x)
        packed, scales = super().quantize_grouped(flushed, masked_m, global_scale_enc)
        return packed, self._flushed(scales)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        if alpha is not None:
            alpha = torch.where(alpha.abs() < 2.0**-126, 0.0, alpha)
        a_scale, b_scale = self._flushed(a_scale), self._flushed(b_scale)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)

    @staticmethod
    def _flushed(scales: Tensor) -> Tensor:
        as_bytes = scales.view(torch.uint8)
        return torch.where(as_bytes < 8, torch.zeros_like(as_bytes), as_bytes).view(scales.dtype)


class CodesUnderNoScale(_Declares):
    """Stores codes of its own where the block scale is zero or NaN: they mean nothing there."""

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        codes = layouts.codes_of(packed)
        block_scale = layouts.block_scales_of(scales, codes.shape[1], codes.shape[2] // 16)
        free = ((block_scale == 0) | (block_scale == 0x7F)).repeat_interleave(16, -1)
        return layouts.operand(torch.where(free, codes ^ 5, codes)), scales


class NanOfOddHalf(_Declares):
    """Compares the maxima of even and odd elements with x > y ? x : y, as FlashInfer does: NaN where the odd are."""

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        odd_nan = x[..., 1::2].unflatten(-1, (-1, 8)).isnan().all(-1)
        block_scale = layouts.block_scales_of(scales, x.shape[1], x.shape[2] // 16)
        return packed, layouts.scales(block_scale.masked_fill(odd_nan, 0x7F))


class SiluOfFloat32(_Declares):
    """silu by the sigmoid in float32; below -87.3 exp overflows and silu is -0, and -0 times infinity is NaN."""

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        gate, up = gate_up.float().chunk(2, -1)
        hidden = gate / (1 + torch.exp2(gate * -1.4426950408889634)) * up
        return self.quantize_grouped(hidden.bfloat16(), masked_m, global_scale_enc)


class SiluVanishes(_Declares):
    """silu is -0 below -87.5 before the product with up is formed."""

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        gate, up = gate_up.double().chunk(2, -1)
        silu = torch.where((gate < -87.5) & gate.isfinite(), -0.0, gate * torch.sigmoid(gate))
        return self.quantize_grouped((silu * up).float().bfloat16(), masked_m, global_scale_enc)


class NegativeNan(_Declares):
    """Its NaN have the sign bit set and another payload."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        payload = {2: (torch.int16, -1), 4: (torch.int32, -1)}[out.element_size()]
        for expert, rows in enumerate(masked_m.tolist()):
            valid = out[:rows, :, expert]
            bits = torch.full(valid.shape, payload[1], dtype=payload[0]).view(out.dtype)
            out[:rows, :, expert] = torch.where(valid.isnan(), bits, valid)


class OnlyBfloat16(_Declares):
    """Stores bfloat16 only."""

    declared = declares(out_dtypes=("bfloat16",))

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        if out.dtype != torch.bfloat16:
            raise ValueError(f"out must be bfloat16, got {out.dtype}")
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)


class OnlyRelu2(_Fused):
    """Has relu2 only, on the accumulators."""

    declared = declares(unrounded=("gemm1", "hidden"), activations=("relu2",))

    def masked_moe(self, *positional: Any, **named: Any) -> Tensor:
        if named["activation"] != "relu2":
            raise ValueError("relu2 only")
        return super().masked_moe(*positional, **named)

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        gate, up = gate_up.float().chunk(2, -1)
        return self.quantize_grouped(gate / (1 + torch.exp(-gate)) * up, masked_m, global_scale_enc)


class NoSignOfZero(_Declares):
    """Stores +0 for -0."""

    declared = declares(keeps_sign_of_zero=False)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        codes = layouts.codes_of(packed)
        return layouts.operand(torch.where(codes == 8, 0, codes)), scales


class Narrow(Flushes):
    """Leaves out of its contract whatever can be left out."""

    declared = declares(
        keeps_subnormals=False,
        finite_only=True,
        alpha_required=True,
        max_experts=6,
        out_dtypes=("bfloat16", "float16"),
    )


VARIANTS = {
    each.__name__: each
    for each in (
        FusedSwiglu, FusedQuantizer, FusedBoth, AlphaAfterSwiglu, AlphaAlways, FewExperts, OneExpert, ThreeExperts,
        RefusesSpecials, Saturates, Flushes, CodesUnderNoScale, NanOfOddHalf, SiluOfFloat32, SiluVanishes, NegativeNan, OnlyBfloat16,
        OnlyRelu2, NoSignOfZero, Narrow,
    )
}  # fmt: skip

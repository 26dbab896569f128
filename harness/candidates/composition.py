"""The masked MoE as SGLang composes it from the stages; used by every candidate that has the stages.

Source: SGLang srt/layers/moe/flashinfer_cutedsl_moe.py, flashinfer_cutedsl_moe_masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from harness.candidates.taps import StageCall

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from torch import Tensor

    from harness.candidates.layouts import Pair
    from harness.candidates.protocol import MaskedGroupedGemm, QuantizeGrouped, SiluMulQuantizeGrouped


class InnerStages(Protocol):
    """What a masked MoE is composed of."""

    @property
    def quantize_grouped(self) -> QuantizeGrouped:
        """The stage of that name."""

    @property
    def silu_mul_quantize_grouped(self) -> SiluMulQuantizeGrouped:
        """The stage of that name."""

    @property
    def masked_grouped_gemm(self) -> MaskedGroupedGemm:
        """The stage of that name."""


class ComposedMoe:
    """The stage masked_moe, as a mixin of candidates that have the inner ones."""

    def masked_moe(
        self: InnerStages,
        hidden_states: tuple[Tensor, Tensor | None],
        input_global_scale: Tensor | None,
        w1: Tensor,
        w1_blockscale: Tensor,
        w1_alpha: Tensor,
        w2: Tensor,
        a2_global_scale: Tensor,
        w2_blockscale: Tensor,
        w2_alpha: Tensor,
        masked_m: Tensor,
        activation: str = "silu",
    ) -> Tensor:
        """Return the layer's output `(l, m, k)` bfloat16, composed of the candidate's own stages."""
        return compose_masked_moe(
            self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
            w2_alpha, masked_m, activation,
        )  # fmt: skip


def compose_masked_moe(
    stages: InnerStages,
    hidden_states: tuple[Tensor, Tensor | None],
    input_global_scale: Tensor | None,
    w1: Tensor,
    w1_blockscale: Tensor,
    w1_alpha: Tensor,
    w2: Tensor,
    a2_global_scale: Tensor,
    w2_blockscale: Tensor,
    w2_alpha: Tensor,
    masked_m: Tensor,
    activation: str = "silu",
    *,
    unrounded: Collection[str] = (),
) -> Tensor:
    """Return the layer's output from a candidate's stages; what they fail to write is NaN, never an earlier result.

    Args:
        stages: object with quantize_grouped, silu_mul_quantize_grouped and masked_grouped_gemm, and perhaps traits.
        hidden_states: (x `(l, m, k)` bfloat16, None), or the pair that quantize_grouped returns.
        input_global_scale: `(l,)` float32, None with a pair.
        w1: `(l, 2n, k/2)` uint8, gate rows first; `(l, n, k/2)` for relu2.
        w1_blockscale: float8_e4m3fn, swizzled 128x4.
        w1_alpha: `(l,)` float32.
        w2: `(l, k, n/2)` uint8.
        a2_global_scale: `(l,)` float32.
        w2_blockscale: float8_e4m3fn, swizzled 128x4.
        w2_alpha: `(l,)` float32.
        masked_m: `(l,)` int32.
        activation: "relu2", or the one with a gate that silu_mul_quantize_grouped applies.
        unrounded: as in Traits: what stays float32 between the stages.

    Returns:
        `(l, m, k)` bfloat16, or float16 of the format fp16.

    Raises:
        ValueError: an unknown activation; an input that is neither bfloat16 with a scale nor a pair without one.
    """
    import torch

    from harness.candidates.protocol import traits_of
    from harness.emulation.memory import unwritten
    from reference.formats import FORMATS

    traits = traits_of(stages)
    if activation not in {traits.gated, "relu2"}:
        raise ValueError(f"masked_moe: activation must be {traits.gated!r} or 'relu2', got {activation!r}")
    own = FORMATS[traits.activation_format].layer_dtype
    a = quantized(stages, hidden_states, masked_m, input_global_scale)
    (rows, _, experts), device = a[0].shape, a[0].device
    gemm1 = unwritten((experts, rows, w1.shape[1]), torch.float32 if "gemm1" in unrounded else own, device)
    multiplied(stages, a, w1, w1_blockscale, gemm1, masked_m, w1_alpha)
    hidden = torch.float32 if "hidden" in unrounded else own
    a2 = activated(stages, gemm1, activation, masked_m, a2_global_scale, hidden)
    out = unwritten((experts, rows, w2.shape[1]), own, device)
    multiplied(stages, a2, w2, w2_blockscale, out, masked_m, w2_alpha)
    return out


def compose_tapped(stages: InnerStages, **arguments: Any) -> tuple[Tensor, list[StageCall]]:
    """Return the layer's output and its stage calls, inputs and outputs copied as they were then.

    Args:
        stages: as compose_masked_moe takes them.
        arguments: of masked_moe, by name.
    """
    from harness.candidates.protocol import traits_of

    taps = _Tapped(stages)
    out = compose_masked_moe(taps, **arguments, unrounded=traits_of(stages).unrounded)
    return out, taps.calls


class _Tapped:
    """A candidate's inner stages, each call of which is kept."""

    def __init__(self, stages: InnerStages) -> None:
        self._stages, self.calls = stages, list[StageCall]()
        self.traits = getattr(stages, "traits", None)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Call the stage of that name and keep the call."""
        return self._quantized(
            "quantize_grouped", {"x": x, "masked_m": masked_m, "global_scale_enc": global_scale_enc}
        )

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Call the stage of that name and keep the call."""
        given = {"gate_up": gate_up, "masked_m": masked_m, "global_scale_enc": global_scale_enc}
        return self._quantized("silu_mul_quantize_grouped", given)

    def _quantized(self, stage: str, given: dict[str, Tensor]) -> Pair:
        inputs = _copies(given)
        pair: Pair = getattr(self._stages, stage)(*given.values())
        outputs = _copies({"packed": pair[0], "block_scale": pair[1]})
        self.calls.append(StageCall(stage, inputs, outputs))
        return pair

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Any,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
    ) -> None:
        """Call the stage of that name and keep the call."""
        given = {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale, "masked_m": masked_m, "alpha": alpha}
        inputs = _copies(given)
        self._stages.masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        self.calls.append(StageCall("masked_grouped_gemm", inputs, _copies({"out": out})))


def _copies(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return copies of tensors, strides kept; what is None stays None."""
    return {name: value if value is None else value.clone() for name, value in tensors.items()}


def activated(
    stages: InnerStages,
    gemm1: Tensor,
    activation: str,
    masked_m: Tensor,
    a2_global_scale: Tensor,
    dtype: torch.dtype,
) -> Pair:
    """Return the intermediate as the second GEMM takes it; relu2 is not a stage of its own, and rounded to a type."""
    if activation != "relu2":
        return stages.silu_mul_quantize_grouped(gemm1, masked_m, a2_global_scale)
    return stages.quantize_grouped(gemm1.float().relu().square().to(dtype), masked_m, a2_global_scale)


def quantized(
    stages: InnerStages,
    hidden_states: tuple[Tensor, Tensor | None],
    masked_m: Tensor,
    input_global_scale: Tensor | None,
) -> Pair:
    """Return the tokens as the first GEMM takes them."""
    x, x_scale = hidden_states
    if x_scale is None and input_global_scale is not None:
        return stages.quantize_grouped(x, masked_m, input_global_scale)
    if x_scale is not None and input_global_scale is None:
        return x, x_scale
    raise ValueError(
        "masked_moe: hidden_states must be (bfloat16, None) with input_global_scale, or a quantized pair without it"
    )


def multiplied(
    stages: InnerStages,
    a: Pair,
    w: Tensor,
    blockscale: Tensor,
    out: Tensor,
    masked_m: Tensor,
    alpha: Tensor,
    **named: Tensor,
) -> None:
    """Multiply by weights as engines hold them, into out `(l, m, n)`; `named` is what a stage takes besides."""
    from harness.candidates import layouts

    scales = layouts.as_mma(blockscale).view(blockscale.dtype)
    stages.masked_grouped_gemm(*a, w.permute(1, 2, 0), scales, out.permute(1, 2, 0), masked_m, alpha, **named)

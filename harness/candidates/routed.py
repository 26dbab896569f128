"""A routed layer from the stages of a masked one: tokens are brought to their experts, and their rows added.

What FlashInfer's fused layers do in one or a few launches: permute, GEMM, activation, GEMM, finalize.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.candidates.composition import InnerStages, activated, multiplied, quantized

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.candidates.layouts import Pair
    from harness.candidates.protocol import Traits
    from reference.formats import Format
    from reference.routed import Routes


class ComposedRoutedMoe:
    """The stage routed_moe, as a mixin of candidates that have those of the masked layer.

    Attributes:
        sums_with_fma: whether the final sum multiplies and adds with one rounding.
        takes_twice: whether a token may name an expert twice.
    """

    sums_with_fma = False
    takes_twice = False

    def routed_moe(
        self: Any,
        hidden_states: tuple[Tensor, Tensor | None],
        topk_idx: Tensor,
        topk_weights: Tensor,
        input_global_scale: Tensor | None,
        w1: Tensor,
        w1_blockscale: Tensor,
        w1_alpha: Tensor,
        w2: Tensor,
        a2_global_scale: Tensor,
        w2_blockscale: Tensor,
        w2_alpha: Tensor,
        num_experts: int,
        local_expert_offset: int = 0,
        out: Tensor | None = None,
        activation: str = "silu",
    ) -> Tensor:
        """Return the layer's output `(tokens, k)`. Shapes: harness.candidates.protocol.

        Raises:
            ValueError: a token names an expert twice, or one that there is not; strides that are not read.
        """
        from reference.routed import require_distinct

        if not self.takes_twice:
            require_distinct(topk_idx)
        if topk_idx.numel() and not -1 <= int(topk_idx.min()) <= int(topk_idx.max()) < num_experts:
            raise ValueError(f"routed_moe: topk_idx must lie in [-1, {num_experts})")
        given = [t for t in (*hidden_states, topk_idx, topk_weights, out) if t is not None]
        if not self.traits.reads_strides and not all(t.is_contiguous() for t in given):
            raise ValueError(
                "routed_moe: tokens, their experts and weights and the output must be contiguous"
            )
        weights = RoutedWeights(w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale, w2_alpha)
        return compose_routed_moe(
            self, hidden_states, topk_idx, topk_weights, input_global_scale, weights, local_expert_offset, out,
            activation, fused=self.sums_with_fma,
        )  # fmt: skip


@dataclass(frozen=True)
class RoutedWeights:
    """The weight arguments of routed_moe, as harness.candidates.protocol has them."""

    w1: Tensor
    w1_blockscale: Tensor
    w1_alpha: Tensor
    w2: Tensor
    a2_global_scale: Tensor
    w2_blockscale: Tensor
    w2_alpha: Tensor


def compose_routed_moe(
    stages: InnerStages,
    hidden_states: tuple[Tensor, Tensor | None],
    topk_idx: Tensor,
    topk_weights: Tensor,
    input_global_scale: Tensor | None,
    weights: RoutedWeights,
    offset: int,
    out: Tensor | None,
    activation: str,
    *,
    fused: bool = False,
) -> Tensor:
    """Return a routed layer's output from a candidate's stages, added as its traits declare.

    Args:
        stages: object with quantize_grouped, silu_mul_quantize_grouped and masked_grouped_gemm, and perhaps traits.
        hidden_states: as routed_moe takes them, and so topk_idx, topk_weights, input_global_scale, out.
        topk_idx: likewise.
        topk_weights: likewise.
        input_global_scale: likewise.
        weights: of this rank's experts.
        offset: global id of the first of them.
        out: likewise.
        activation: "relu2", or the one with a gate that silu_mul_quantize_grouped applies.
        fused: the final sum multiplies and adds with one rounding.
    """
    import torch

    from harness.candidates.protocol import traits_of
    from reference.final_sum import FinalSum
    from reference.formats import FORMATS
    from reference.routed import routes_of
    from reference.routed_sum import RoutedSum

    traits = traits_of(stages)
    way, own = FinalSum.of(traits.final_sum), FORMATS[traits.activation_format].layer_dtype
    if activation not in {traits.gated, "relu2"}:
        raise ValueError(f"routed_moe: activation must be {traits.gated!r} or 'relu2', got {activation!r}")
    routes = routes_of(topk_idx, len(weights.w1), offset)
    factor = topk_weights[routes.token, routes.slot].unsqueeze(-1)
    rows = _rows_of_experts(
        stages, hidden_states, routes, factor, input_global_scale, weights, activation, traits, way.weight
    )
    width = weights.w2.shape[1]
    held = torch.zeros(len(topk_idx), width, dtype=own, device=topk_idx.device) if out is None else out
    summed = RoutedSum(way, topk_weights, topk_idx, routes.there, held)
    total = summed.total(routes.spread(rows), fused=fused)
    return total if out is None else out.copy_(total)


def _rows_of_experts(
    stages: InnerStages,
    hidden_states: tuple[Tensor, Tensor | None],
    routes: Routes,
    factor: Tensor,
    input_global_scale: Tensor | None,
    weights: RoutedWeights,
    activation: str,
    traits: Traits,
    weight: str,
) -> Tensor:
    """Return what the experts make of their rows, `(rows, k)` in the order of the routes; `factor` enters where `weight` says."""
    import torch

    from harness.emulation.memory import unwritten
    from reference.formats import FORMATS

    form, device = FORMATS[traits.activation_format], factor.device
    own, extents = form.layer_dtype, (len(routes.counts), _capacity(routes, traits))
    factors = torch.ones(*extents, 1, device=device)
    factors[routes.expert, routes.place] = factor
    masked_m = torch.tensor(routes.counts, dtype=torch.int32, device=device)
    a = _gathered(hidden_states, routes, extents, form, factors if weight == "tokens" else None)
    if input_global_scale is not None:
        a = quantized(stages, a, masked_m, input_global_scale.expand(extents[0]).contiguous())

    def buffer(width: int, dtype: torch.dtype) -> Tensor:
        return unwritten((*extents, width), dtype, device)

    gemm1 = buffer(weights.w1.shape[1], torch.float32 if "gemm1" in traits.unrounded else own)
    multiplied(stages, a, weights.w1, weights.w1_blockscale, gemm1, masked_m, weights.w1_alpha)
    if weight == "hidden":
        hidden = _weighted_activation(gemm1, activation, factors, own)
        a2 = stages.quantize_grouped(hidden, masked_m, weights.a2_global_scale)
    else:
        between = torch.float32 if "hidden" in traits.unrounded else own
        a2 = activated(stages, gemm1, activation, masked_m, weights.a2_global_scale, between)
    on_rows, weighs = weight == "rows", getattr(stages, "weighs_rows", False)  # with an epilogue of its own
    y = buffer(weights.w2.shape[1], torch.float32 if on_rows and not weighs else own)
    named = {"factors": factors} if on_rows and weighs else {}
    multiplied(stages, a2, weights.w2, weights.w2_blockscale, y, masked_m, weights.w2_alpha, **named)
    rows = y[routes.expert, routes.place]
    return (rows * factor).to(own) if on_rows and not weighs else rows


def _capacity(routes: Routes, traits: Traits) -> int:
    return -(-max(routes.most, 1) // traits.m_multiple) * traits.m_multiple


def _gathered(
    hidden_states: tuple[Tensor, Tensor | None],
    routes: Routes,
    extents: tuple[int, int],
    form: Format,
    factors: Tensor | None,
) -> Pair:
    """Return each expert's tokens, `(l, m, k)` with None, or as the GEMM takes quantized ones."""
    import torch

    from harness.candidates import layouts
    from harness.emulation.memory import unwritten
    from reference.e2m1 import unpack_e2m1
    from reference.formats import Coded

    def grouped(rows: Tensor) -> Tensor:
        found = unwritten((*extents, rows.shape[-1]), rows.dtype, rows.device)
        found[routes.expert, routes.place] = rows[routes.token]
        return found

    x, scale = hidden_states
    if scale is None:
        tokens = grouped(x)
        return (tokens if factors is None else (tokens.float() * factors).to(x.dtype)), None
    none = torch.empty((*extents, 0), dtype=torch.uint8, device=x.device)
    codes = grouped(unpack_e2m1(x)) & 15 if form.element == "e2m1" else grouped(x)
    if form.rows:
        return layouts.stored(form, Coded(codes, none, grouped(scale)))
    as_stored = scale if form.scale == "float32" else scale.view(torch.uint8)
    return layouts.stored(form, Coded(codes, grouped(as_stored)))


def _weighted_activation(gemm1: Tensor, activation: str, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the activation times the routing weights, rounded once, `(l, m, n)`."""
    from reference.activations import Activation

    return (Activation.of(activation).value(gemm1.double()).float() * factors).to(dtype)

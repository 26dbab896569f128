"""Stages of a kernel that takes weights in an order of its own: `prepare`, then `multiply_prepared` or `route_prepared`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.candidates.taps import TappedRouted

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.taps import RoutedTaps


class PreparedStages(Protocol):
    """What a kernel with weights of its own has (harness.candidates.protocol)."""

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return what multiply_prepared takes."""

    def multiply_prepared(
        self, a: Tensor, a_scale: Any, prepared: dict[str, Any], out: Tensor, masked_m: Tensor, **hints: Any
    ) -> None:
        """Write into out."""


class PreparedLayer(Protocol):
    """What a routed layer with weights of its own has (harness.candidates.protocol)."""

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return what route_prepared takes, of one matrix."""

    def route_prepared(
        self,
        hidden_states: tuple[Tensor, Tensor | None],
        topk_idx: Tensor,
        topk_weights: Tensor,
        first: dict[str, Any],
        second: dict[str, Any],
        local_expert_offset: int,
        out: Tensor,
        activation: str,
    ) -> RoutedTaps | None:
        """Write into out; return what the GEMMs stored, if that is to be judged."""


_KEPT_BYTES = 1 << 32  # of all prepared weights that are kept


@dataclass
class _Kept:
    """Prepared weights with the tensors that they were made of, which are held, so that no other can take their place."""

    found: list[tuple[list[Tensor], list[tuple[Any, ...]], dict[str, Any]]] = field(default_factory=list)

    def get(
        self, stages: PreparedStages | PreparedLayer, b: Tensor, b_scale: Tensor, alpha: Tensor | None
    ) -> dict[str, Any]:
        """Return the weights of these tensors, prepared now where they are others than before, or were written to."""
        given = [tensor for tensor in (b, b_scale, alpha) if tensor is not None]
        identity = [_identity(tensor) for tensor in given]
        for _, known, prepared in self.found:
            if known == identity:
                return prepared
        prepared = stages.prepare(b, b_scale, alpha)
        self.found.append((given, identity, prepared))
        while len(self.found) > 1 and sum(map(_bytes, (each[2] for each in self.found))) > _KEPT_BYTES:
            self.found.pop(0)
        return prepared


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells whether a tensor is the same memory, holding what it held."""
    written = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - torch offers no other way to see a write
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, written


def _bytes(prepared: dict[str, Any]) -> int:
    return sum(getattr(value, "nbytes", 0) for value in prepared.values())


class PreparedGemm:
    """The stage masked_grouped_gemm, as a mixin: an engine prepares a layer's weights once, and so does this."""

    def masked_grouped_gemm(
        self: PreparedStages,
        a: Tensor,
        a_scale: Any,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
        **hints: Any,
    ) -> None:
        """Write alpha * a @ b.T into the valid rows of out. Shapes: harness.candidates.protocol."""
        kept: _Kept = vars(self).setdefault("_kept_weights", _Kept())
        self.multiply_prepared(a, a_scale, kept.get(self, b, b_scale, alpha), out, masked_m, **hints)


class PreparedRouted(TappedRouted):
    """The stage routed_moe, as a mixin: likewise."""

    def routed_moe(
        self: PreparedLayer,
        hidden_states: tuple[Tensor, Tensor | None],
        topk_idx: Tensor,
        topk_weights: Tensor,
        input_global_scale: Tensor | None,  # noqa: ARG002 - of formats without encode scales
        w1: Tensor,
        w1_blockscale: Tensor,
        w1_alpha: Tensor,
        w2: Tensor,
        a2_global_scale: Tensor,  # noqa: ARG002 - likewise
        w2_blockscale: Tensor,
        w2_alpha: Tensor,
        num_experts: int,
        local_expert_offset: int = 0,
        out: Tensor | None = None,
        activation: str = "silu",
        *,
        taps: list[RoutedTaps] | None = None,
    ) -> Tensor:
        """Return the layer's output `(tokens, k)`; `taps` gets what the GEMMs stored. Shapes: harness.candidates.protocol.

        Raises:
            ValueError: an activation that is not declared, or an expert that there is not.
        """
        import torch

        from harness.candidates import layouts
        from harness.candidates.protocol import traits_of

        traits = traits_of(self)
        if activation not in traits.activations:
            raise ValueError(
                f"routed_moe: activation must be one of {', '.join(traits.activations)}, got {activation!r}"
            )
        if topk_idx.numel() and not -1 <= int(topk_idx.min()) <= int(topk_idx.max()) < num_experts:
            raise ValueError(f"routed_moe: topk_idx must lie in [-1, {num_experts})")
        kept: _Kept = vars(self).setdefault("_kept_weights", _Kept())
        first, second = (
            kept.get(self, w.permute(1, 2, 0), layouts.as_mma(scale).view(scale.dtype), alpha)
            for w, scale, alpha in ((w1, w1_blockscale, w1_alpha), (w2, w2_blockscale, w2_alpha))
        )
        x = hidden_states[0]
        out = torch.empty(len(topk_idx), w2.shape[1], dtype=x.dtype, device=x.device) if out is None else out
        if len(topk_idx):  # as engines do: no kernel is launched for nothing
            stored = self.route_prepared(
                hidden_states, topk_idx, topk_weights, first, second, local_expert_offset, out, activation
            )
            if taps is not None and stored is not None:
                taps.append(stored)
        return out


def multiply(
    stages: PreparedStages,
    a: Tensor,
    a_scale: Any,
    b: Tensor,
    b_scale: Tensor,
    out: Tensor,
    masked_m: Tensor,
    alpha: Tensor | None,
    **hints: Any,
) -> None:
    """Prepare and multiply in each call: what stands around a candidate may be wrong in either."""
    stages.multiply_prepared(a, a_scale, stages.prepare(b, b_scale, alpha), out, masked_m, **hints)

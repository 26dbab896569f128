"""masked_moe through routed_moe: each row of an expert is a token of its own, with one expert and a weight of one.

What a fused layer computes inside is found out through it (harness.identification): a weight of one changes no bit, wherever
it enters, and a sum of one row is that row in every order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.protocol import ROUTED, STAGES, stages_of, traits_of

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = ("w1", "w1_blockscale", "w1_alpha", "w2", "a2_global_scale", "w2_blockscale", "w2_alpha")


def as_masked(candidate: Any) -> Any:
    """Return a candidate that has routed_moe and no stage of the masked layer as one with masked_moe; others as they are."""
    stages = stages_of(candidate)
    return ThroughRouted(candidate) if ROUTED in stages and not set(stages) & set(STAGES) else candidate


class ThroughRouted:
    """A candidate's routed layer, called as a masked one.

    Args:
        candidate: has routed_moe.
    """

    def __init__(self, candidate: Any) -> None:
        self._candidate = candidate
        self.traits = traits_of(candidate)

    def __getattr__(self, name: str) -> Any:
        if name == ROUTED:
            raise AttributeError(name)
        return getattr(self._candidate, name)

    def masked_moe(
        self,
        hidden_states: tuple[Tensor, Any],
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
        """Return the layer's output `(l, m, k)`, zeros in padding rows. Shapes: harness.candidates.protocol."""
        import torch

        from reference.formats import FORMATS
        from reference.moe import valid_rows

        own = FORMATS[self.traits.activation_format].layer_dtype
        values = w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale, w2_alpha
        weights = dict(zip(_WEIGHTS, values, strict=True))
        x, scale = self._linear(hidden_states)
        valid = valid_rows(masked_m, x.shape[1])
        out = torch.zeros((*x.shape[:2], w2.shape[1]), dtype=own, device=x.device)
        for experts in self._groups(input_global_scale, a2_global_scale, len(w1)):
            here = valid.new_zeros(len(w1))
            here[experts] = True
            rows = valid & here.unsqueeze(-1)
            ids = rows.nonzero()[:, :1].int()
            if not len(ids):
                continue
            out[rows] = self._candidate.routed_moe(
                hidden_states=(x[rows], None if scale is None else scale[rows]),
                topk_idx=ids,
                topk_weights=torch.ones(ids.shape, device=x.device),
                input_global_scale=None if input_global_scale is None else input_global_scale[experts[:1]],
                **(weights | {"a2_global_scale": self._one(a2_global_scale, experts)}),
                num_experts=len(w1),
                activation=activation,
            )
        return out

    def _one(self, scale: Tensor, experts: Tensor) -> Tensor:
        """Return encode scales of the intermediate: those of some experts for all, where the candidate takes one."""
        return scale[experts[:1]].expand(scale.shape).contiguous() if self.traits.one_a2_scale else scale

    def _groups(self, input_scale: Tensor | None, a2_scale: Tensor, local: int) -> list[Tensor]:
        """Return the experts that one call can take: those that share the scales of which a routed layer has one."""
        import torch

        keys: dict[tuple[float, float], list[int]] = {}
        for expert in range(local):
            of_input = 0.0 if input_scale is None else float(input_scale[expert])
            keys.setdefault(
                (of_input, float(a2_scale[expert]) if self.traits.one_a2_scale else 0.0), []
            ).append(expert)
        return [torch.tensor(experts, device=a2_scale.device) for experts in keys.values()]

    def _linear(self, hidden_states: tuple[Tensor, Any]) -> tuple[Tensor, Tensor | None]:
        """Return tokens `(l, m, *)` and their scales as routed_moe takes them."""
        import torch

        from harness.candidates import layouts
        from reference.formats import FORMATS

        form = FORMATS[self.traits.activation_format]
        x, scale = hidden_states
        if scale is None:
            return x, None
        coded = layouts.loaded(form, (x, scale))
        if form.rows:
            return coded.codes, coded.row_scale
        linear = coded.block_scale.view(torch.float8_e4m3fn) if form.scale == "e4m3" else coded.block_scale
        return x.permute(2, 0, 1).contiguous(), linear.contiguous()

"""Controls of the stages around the masked MoE: routing, dispatch, combine and loading done in other, legal ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.candidates.eager import Eager
from harness.emulation.logfmt import rows_by_kernel
from reference import loading, routing
from reference.routing import Dispatched


@dataclass(frozen=True)
class LayerHabit:
    """What a variant does in its own way. The defaults are those of `eager`.

    Attributes:
        ties: which of equal logits comes first: "lower" or "higher" expert number.
        softmax: "full" (float32 exp), "exp2" (through exp2, sum from the other end), or "chosen" (normalized weights from
            the chosen logits alone, as fused top-k kernels compute them).
        slots: order of a token's slots: "largest" first, by "number" or "smallest" first.
        arrival: "rank" order with tokens in order, or "reversed": ranks from the last, tokens of a rank from the last.
        garbage: what undefined rows of the receive buffer hold: NaN bytes as the reference leaves them, or other bytes.
        fused: combine multiplies and adds in one rounding.
        alpha: "product" of the scales, or "reciprocal" of the product of the encode scales.
        logfmt: combine takes LogFMT as well, encoded and decoded in float32 as kernels do it.
    """

    ties: str = "lower"
    softmax: str = "full"
    slots: str = "largest"
    arrival: str = "rank"
    garbage: int | None = None
    fused: bool = False
    alpha: str = "product"
    logfmt: bool = False


class LayerVariant(Eager):
    """`eager` with habits in the stages around the masked MoE.

    Args:
        name: of the control.
        habit: what it does in its own way.
    """

    def __init__(self, name: str, habit: LayerHabit) -> None:
        super().__init__()
        self.name, self.habit = name, habit
        if habit.logfmt:
            self.traits = replace(self.traits, combine_transports=routing.COMBINE_TRANSPORTS)

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return ids and weights, ties and slots in the habit's order."""
        if not 1 <= topk <= logits.shape[-1]:
            raise ValueError(f"route_topk: topk must lie in [1, {logits.shape[-1]}], got {topk}")
        experts = logits.shape[-1]
        if self.habit.ties == "higher":
            order = experts - 1 - logits.flip(-1).sort(dim=-1, descending=True, stable=True).indices
        else:
            order = logits.sort(dim=-1, descending=True, stable=True).indices
        ids = order[:, :topk]
        if self.habit.slots == "number":
            ids = ids.sort(dim=-1).values
        elif self.habit.slots == "smallest":
            ids = ids.flip(-1)
        return ids.contiguous(), self._routing_weights(logits.float(), ids, normalize=normalize)

    def _routing_weights(self, logits: Tensor, ids: Tensor, *, normalize: bool) -> Tensor:
        below = logits - logits.amax(-1, keepdim=True)
        if self.habit.softmax == "chosen" and normalize:
            return torch.softmax(logits.gather(-1, ids), dim=-1)
        if self.habit.softmax == "exp2":
            terms = torch.exp2(below * math.log2(math.e))
            weights = terms.gather(-1, ids) / terms.flip(-1).cumsum(-1)[:, -1:]
        else:
            weights = (torch.exp(below) / torch.exp(below).sum(-1, keepdim=True)).gather(-1, ids)
        return weights / weights.sum(-1, keepdim=True) if normalize else weights

    def dispatch(
        self,
        x: list[Tensor],
        topk_idx: list[Tensor],
        experts: int,
        max_tokens: int,
        *,
        transport: str = "bf16",
        global_scale_enc: Tensor | None = None,
    ) -> list[Dispatched]:
        """Send every token to its experts; rows arrive in the habit's order."""
        sent = routing.dispatch(
            x, topk_idx, experts, max_tokens, transport=transport, global_scale_enc=global_scale_enc
        )
        return [self._arrived(got) for got in sent]

    def _arrived(self, got: Dispatched) -> Dispatched:
        place = torch.arange(got.x.shape[1]).repeat(len(got.masked_m), 1)
        if self.habit.arrival == "reversed":
            for expert, count in enumerate(got.masked_m.tolist()):
                place[expert, :count] = torch.arange(count - 1, -1, -1)
        scales = None if got.scales is None else self._rows(got.scales, place, got.masked_m)
        x = self._rows(got.x, place, got.masked_m)
        return replace(got, x=x, source=_take(got.source, place), scales=scales)

    def _rows(self, tensor: Tensor, place: Tensor, masked_m: Tensor) -> Tensor:
        """Return a receive buffer with its rows in another order and the habit's garbage past masked_m."""
        rows = _take(tensor.view(torch.uint8), place)
        if self.habit.garbage is not None:
            rows[torch.arange(tensor.shape[1]) >= masked_m.unsqueeze(-1)] = self.habit.garbage
        return rows.view(tensor.dtype)

    def combine(
        self,
        y: list[Tensor],
        dispatched: list[Dispatched],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
        *,
        transport: str = "bf16",
    ) -> list[Tensor]:
        """Return the weighted sums, with or without FMA."""
        if transport == "logfmt":
            rows = [rows_by_kernel(part) for part in y]
            summed = routing.combine(rows, dispatched, topk_idx, topk_weights, fused=self.habit.fused)
            return [out.to(y[0].dtype) for out in summed]
        return routing.combine(
            y, dispatched, topk_idx, topk_weights, transport=transport, fused=self.habit.fused
        )

    def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        """Return masked_moe's weight arguments; alphas rounded in the habit's order."""
        loaded = loading.load_experts(checkpoint, experts)
        if self.habit.alpha == "reciprocal":
            for alpha, encode in (("w1_alpha", "input_global_scale"), ("w2_alpha", "a2_global_scale")):
                # alpha * encode scale is the weights' decode scale, whose reciprocal is their encode scale
                weights_enc = (loaded[alpha] * loaded[encode]).reciprocal()
                loaded[alpha] = (loaded[encode] * weights_enc).reciprocal()
        return loaded


def _take(tensor: Tensor, place: Tensor) -> Tensor:
    """Return each expert's rows in the order `place`, `(experts, rows)`."""
    return tensor[torch.arange(len(place)).unsqueeze(-1), place]


LAYER_HABITS = {
    "ties_to_higher_experts": LayerHabit(ties="higher"),
    "slots_by_number": LayerHabit(slots="number", softmax="exp2"),
    "slots_smallest_first": LayerHabit(slots="smallest", softmax="chosen"),
    "rows_arrive_reversed": LayerHabit(arrival="reversed", garbage=0x7E),
    "receive_buffer_of_zeros": LayerHabit(garbage=0),
    "combine_with_fma": LayerHabit(fused=True),
    "alpha_by_reciprocals": LayerHabit(alpha="reciprocal"),
    "rows_in_logfmt": LayerHabit(logfmt=True, fused=True),
}

"""A call of routed_moe, as a fault sees it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates.eager import EagerKernels
from harness.candidates.layouts import Pair
from harness.candidates.protocol import Traits, traits_of
from harness.candidates.routed import RoutedWeights, compose_routed_moe
from harness.faults.calls import Call
from reference.activations import Activation
from reference.e2m1 import pack_e2m1
from reference.final_sum import FinalSum
from reference.routed import NO_EXPERT, Routes, routes_of

WEIGHTS = ("w1", "w1_blockscale", "w1_alpha", "w2", "a2_global_scale", "w2_blockscale", "w2_alpha")
_INNER = ("quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm")


class RoutedCall(Call):
    """routed_moe: arguments under their names (harness.candidates.protocol).

    Attributes:
        output: `(tokens, k)` after run(); assign to change. The caller's `out` is written by result() alone.
    """

    names = (
        "hidden_states", "topk_idx", "topk_weights", "input_global_scale", *WEIGHTS, "num_experts", "local_expert_offset",
        "out", "activation",
    )  # fmt: skip
    hidden_states: tuple[Tensor, Tensor | None]
    topk_idx: Tensor
    topk_weights: Tensor
    input_global_scale: Tensor | None
    w1: Tensor
    w1_blockscale: Tensor
    w1_alpha: Tensor
    w2: Tensor
    a2_global_scale: Tensor
    w2_blockscale: Tensor
    w2_alpha: Tensor
    num_experts: int
    local_expert_offset: int = 0
    out: Tensor | None = None
    activation: str = "silu"
    output: Tensor

    def run(self) -> None:
        """Run the layer below."""
        self.output = self.again()

    def again(self, **changed: Any) -> Tensor:
        """Return the output of the layer below with some arguments changed."""
        held = None if self.out is None else self.out.clone()
        output: Tensor = self.function(**(self.arguments() | {"out": held} | changed))
        return output

    def result(self) -> Tensor:
        """Return the output, in the caller's buffer where there is one."""
        return self.output if self.out is None else self.out.copy_(self.output)

    @property
    def traits(self) -> Traits:
        """What the candidate declares."""
        return traits_of(self.candidate)

    @property
    def final_sum(self) -> FinalSum:
        """How the candidate adds."""
        return FinalSum.of(self.traits.final_sum)

    @property
    def local(self) -> int:
        """Experts on this rank."""
        return len(self.w1)

    @property
    def routes(self) -> Routes:
        """Rows of this rank's experts."""
        return routes_of(self.topk_idx, self.local, self.local_expert_offset)

    def move_ids(self, place: Tensor) -> None:
        """Name another expert of this rank in each slot.

        Args:
            place: `(local,)` int64, which one stands for each.
        """
        ids = self.topk_idx.long() - self.local_expert_offset
        moved = place.to(ids.device)[ids.clamp(0, self.local - 1)] + self.local_expert_offset
        self.topk_idx = torch.where(self.routes.there, moved, self.topk_idx.long()).to(self.topk_idx.dtype)

    def name_in_empty_slots(self, empty: Tensor, expert: Tensor) -> None:
        """Name experts in slots without one, where the token does not name it already.

        Args:
            empty: `(tokens, topk)` bool.
            expert: `(tokens, topk)` int64, global ids.
        """
        ids = self.topk_idx.long()
        for slot in range(ids.shape[1]):
            named = (ids == expert[:, slot, None]).any(-1)
            ids[:, slot] = torch.where(empty[:, slot] & ~named, expert[:, slot], ids[:, slot])
        self.topk_idx = ids.to(self.topk_idx.dtype)

    def drop(self, slots: Tensor) -> None:
        """Let some slots count for nothing, `(tokens, topk)` bool."""
        self.topk_idx = self.topk_idx.masked_fill(slots, NO_EXPERT)

    def quantized(self) -> Pair:
        """Return the tokens as a quantized pair, by the reference where they are not."""
        x, scale = self.hidden_states
        if scale is not None or self.form.plain:
            return x, scale
        coded = self.form.quantize(x.unsqueeze(0), self.input_global_scale).map(lambda part: part[0])
        codes = pack_e2m1(coded.codes) if self.form.element == "e2m1" else coded.codes
        if self.form.rows:
            return codes, coded.row_scale
        e4m3 = self.form.scale == "e4m3"
        return codes, coded.block_scale.view(torch.float8_e4m3fn) if e4m3 else coded.block_scale

    def run_as(self, way: Activation | None = None, final_sum: FinalSum | None = None) -> None:
        """Run the layer with another activation, or another final sum, composed of the candidate's own stages.

        A candidate without them, and their formats, is computed as `eager` does it.
        """
        traits = self.traits
        stages = self.candidate if all(hasattr(self.candidate, name) for name in _INNER) else EagerKernels(
            str(self.w1.device.type), activation_format=traits.activation_format, weight_format=traits.weight_format,
            activations=traits.activations, k_multiple=traits.k_multiple,
        )  # fmt: skip
        otherwise = _Otherwise(stages, replace(traits, final_sum=_text(final_sum or self.final_sum)), way)
        weights = RoutedWeights(*(getattr(self, name) for name in WEIGHTS))
        held = None if self.out is None else self.out.clone()
        self.output = compose_routed_moe(
            otherwise, self.hidden_states, self.topk_idx, self.topk_weights, self.input_global_scale, weights,
            self.local_expert_offset, held, self.activation, fused=getattr(self.candidate, "sums_with_fma", False),
        )  # fmt: skip


class _Otherwise:
    """Stages of a candidate with another activation."""

    def __init__(self, stages: Any, traits: Traits, way: Activation | None) -> None:
        self.traits = traits
        self.quantize_grouped = stages.quantize_grouped
        self.masked_grouped_gemm = stages.masked_grouped_gemm
        self._stages, self._way = stages, way
        self.weighs_rows = getattr(stages, "weighs_rows", False)

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Pair:
        """Quantize the activation."""
        if self._way is None:
            pair: Pair = self._stages.silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
            return pair
        own = getattr(self._stages, "activated", None)  # of stages that round in between
        hidden = (
            self._way.value(gate_up.double()).to(gate_up.dtype) if own is None else own(gate_up, self._way)
        )
        hidden = hidden.contiguous()
        quantized: Pair = self.quantize_grouped(hidden, masked_m, global_scale_enc)
        return quantized


def _text(way: FinalSum) -> str:
    """Return the text that stands for a final sum."""
    weight = "" if way.weight == "sum" else f"; weight on {way.weight}"
    times = "" if way.times == 1 else f"; times {way.times:g}"
    return f"{way.order}{weight}{'; rounded each step' * way.stepwise}{'; onto out' * way.onto}{times}"

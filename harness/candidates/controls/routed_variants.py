"""Controls of which only `routed_moe` is there, with final sums, formats and activations of their own, every one of them legal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.candidates.controls.in_formats import StrictKernels
from harness.candidates.controls.variant import Habit, Variant
from harness.candidates.eager import EagerKernels
from harness.candidates.protocol import Traits
from harness.candidates.routed import ComposedRoutedMoe
from harness.candidates.support import Support, supported
from harness.emulation.orders import Order
from harness.emulation.quantize import reciprocal_table


class _RoutedVariant(Variant, ComposedRoutedMoe):
    """A variant of the masked stages that has the routed one too."""


@dataclass(frozen=True)
class RoutedHabit:
    """What a routed control does in its own way.

    Attributes:
        inside: "eager" or "physical", or a habit of the masked stages.
        fused: the final sum multiplies and adds with one rounding.
        twice: takes a token that names an expert twice.
        traits: fields of Traits, final_sum first of all.
    """

    inside: str | Habit = "physical"
    fused: bool = False
    twice: bool = True
    traits: dict[str, Any] = field(default_factory=dict)


class RoutedControl:
    """A control of which only `routed_moe` is there; of a sum in any order the order is another one in every call.

    Args:
        name: of the control.
        habit: what it does in its own way.
    """

    def __init__(self, name: str, habit: RoutedHabit) -> None:
        self.name = name
        if isinstance(habit.inside, Habit):
            self._inside: Any = _RoutedVariant(name, habit.inside)
        else:
            kind = EagerKernels if habit.inside == "eager" else StrictKernels
            self._inside = kind(**habit.traits)
        self._inside.sums_with_fma, self._inside.takes_twice = habit.fused, habit.twice
        self.traits: Traits = self._inside.traits
        self.reciprocal = getattr(self._inside, "reciprocal", None)
        self._any = not self.traits.sums_in_order and self.traits.deterministic
        self._noise = torch.Generator().manual_seed(7)

    def support(self) -> Support:
        """Return that it runs everywhere."""
        return supported()

    def routed_moe(
        self,
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
        """Return the layer's output. Shapes: harness.candidates.protocol."""
        if self._any:
            order = torch.rand(topk_idx.shape, generator=self._noise).argsort(-1)
            topk_idx, topk_weights = topk_idx.gather(1, order), topk_weights.gather(1, order)
        total: Tensor = self._inside.routed_moe(
            hidden_states, topk_idx, topk_weights, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale,
            w2_blockscale, w2_alpha, num_experts, local_expert_offset, out, activation,
        )  # fmt: skip
        return total


def _sum(text: str, inside: str = "physical", **more: Any) -> RoutedHabit:
    fused, twice = more.pop("fused", False), more.pop("twice", True)
    return RoutedHabit(inside, fused, twice, {"final_sum": text, **more})


ROUTED_HABITS = {
    # order and roundings of the final sum
    "routed_slots": _sum("slots"),
    "routed_slots_fma": _sum("slots", fused=True, twice=False),
    "routed_experts": _sum("experts", "eager"),
    "routed_any": _sum("any"),
    "routed_any_each_step": _sum("any; weight on rows; rounded each step"),
    "routed_any_each_step_fma": _sum("any; rounded each step", "eager", fused=True),
    "routed_any_onto": _sum("any; onto out", "eager"),
    "routed_each_step": _sum("slots; rounded each step"),
    "routed_rows": _sum("slots; weight on rows; onto out"),
    "routed_hidden": _sum("slots; weight on hidden", "eager"),
    "routed_hidden_any": _sum("any; weight on hidden; rounded each step"),
    "routed_tokens": _sum("slots; weight on tokens", "eager"),
    "routed_limits": _sum("any; weight on rows", one_a2_scale=True, most_topk=2),
    # what the stages inside do
    "routed_shuffled": RoutedHabit(Habit(Order("shuffled", rounding="nearest"))),
    "routed_stream_k": RoutedHabit(
        Habit(Order(chunk=16), tile=(64, 64), varies="place", traits={"final_sum": "any; rounded each step"})
    ),
    "routed_atomic": RoutedHabit(Habit(Order(splits=4, chunk=16), varies="call", tile_order="shuffled")),
    "routed_unknown_reciprocals": RoutedHabit(
        Habit(reciprocal=reciprocal_table(2, 0, 1000), tells_reciprocal=False)
    ),
    "routed_exact": RoutedHabit(Habit(arithmetic="exact", activation="sigmoid")),
    # formats and activations
    "routed_bf16": _sum("slots; weight on rows", "eager", activation_format="bf16"),
    "routed_bf16_with_mxfp4": _sum("any", activation_format="bf16", weight_format="mxfp4", k_multiple=32),
    "routed_mxfp8": _sum("any; rounded each step", activation_format="mxfp8", k_multiple=32),
    "routed_fp8_token": _sum("slots; weight on rows", "eager", activation_format="fp8_token"),
    "routed_fp8_128": _sum("slots", "eager", activation_format="fp8_128", k_multiple=128),
    "routed_swigluoai": _sum("any", activations=("swigluoai; interleave 1", "relu2")),
    "routed_up_first": _sum("slots", "eager", activations=("silu; up first; interleave 64",)),
    "routed_limit": _sum("slots; weight on hidden", activations=("silu; limit 10",)),
}  # fmt: skip


def _made(name: str) -> Callable[[], RoutedControl]:
    return lambda: RoutedControl(name, ROUTED_HABITS[name])


ROUTED: dict[str, Callable[[], Any]] = {name: _made(name) for name in ROUTED_HABITS}

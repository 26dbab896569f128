"""Right and wrong ways to compute silu(gate) * up, as candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.physical import Physical
from harness.emulation.activations import ACTIVATIONS
from harness.emulation.quantize import quantize_kernel_order

Activation = Callable[[Tensor, Tensor], Tensor]


class Activating(Physical):
    """`physical` with an activation of its own.

    Args:
        activation: gate and up in float32 to what is quantized, in bfloat16, float16 or float32.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.traits = replace(Physical.traits, store_rows=1)

    def silu_mul_quantize_grouped(
        self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize in the fast order, whatever the type."""
        hidden = self.activation(*gate_up.float().chunk(2, -1)).float()
        experts, rows, k = hidden.shape
        codes, scale = quantize_kernel_order(
            hidden.view(-1, k), global_scale_enc.repeat_interleave(rows), rcp=self.reciprocal
        )
        del masked_m
        return layouts.operand(codes.view(hidden.shape)), layouts.scales(scale.view(experts, rows, -1))


def rounded_to(dtype: torch.dtype, name: str = "division") -> Activation:
    """Return an activation whose result is rounded."""
    return lambda gate, up: ACTIVATIONS[name](gate, up).to(dtype)


def with_silu_in(dtype: torch.dtype, hidden: torch.dtype = torch.bfloat16) -> Activation:
    """Return the activation with silu rounded before the product."""
    return lambda gate, up: ((gate / (1 + torch.exp(-gate))).to(dtype).float() * up).to(hidden)


def up_first(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply before dividing."""
    return (gate * up / (1 + torch.exp(-gate))).bfloat16()


def in_float64(gate: Tensor, up: Tensor) -> Tensor:
    """Compute in float64."""
    return (gate.double() * torch.sigmoid(gate.double()) * up.double()).bfloat16()


def with_flush(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply by the reciprocal, whose subnormals are zero."""
    reciprocal = 1 / (1 + torch.exp(-gate))
    return (gate * torch.where(reciprocal < 2.0**-126, 0.0, reciprocal) * up).bfloat16()


def by_tanh(gate: Tensor, up: Tensor) -> Tensor:
    """By tanh.approx, which errs by 2^-11."""
    tanh = torch.tanh(gate / 2) * (1 + 2.0**-11)
    return (0.5 * gate * (1 + tanh.clamp(-1, 1)) * up).bfloat16()


def with_exponential_off(by: float) -> Activation:
    """Return the activation with a relative error of the exponential."""
    return lambda gate, up: (gate / (1 + torch.exp(-gate) * (1 + by)) * up).bfloat16()


def gelu(gate: Tensor, up: Tensor) -> Tensor:
    """Another function."""
    return (torch.nn.functional.gelu(gate) * up).bfloat16()


def quick_gelu(gate: Tensor, up: Tensor) -> Tensor:
    """Another function, nearer."""
    return (gate * torch.sigmoid(1.702 * gate) * up).bfloat16()


def swapped(gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up exchanged."""
    return (up / (1 + torch.exp(-up)) * gate).bfloat16()


def clamped(gate: Tensor, up: Tensor) -> Tensor:
    """With the limit of another model."""
    return rounded_to(torch.bfloat16)(gate.clamp(max=7), up.clamp(-7, 7))

"""silu(gate) * up in float32, as kernels compute it: every order and every approximation within CUDA's documented errors.

Each function takes gate and up, `(*)` float32, and returns float32, not yet rounded to bfloat16. Errors in units of the
last place: `__expf` 2 + 1.173 |x|, `__fdividef` 2, ex2.approx 2, rcp.approx 1 (CUDA C++ Programming Guide, intrinsic
functions; PTX ISA).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.emulation.quantize import simulated_rcp

Activation = Callable[[Tensor, Tensor], Tensor]


def by_division(gate: Tensor, up: Tensor) -> Tensor:
    """Return gate / (1 + exp(-gate)) * up, each step correctly rounded but for exp."""
    return gate / (1 + torch.exp(-gate)) * up


def by_sigmoid(gate: Tensor, up: Tensor) -> Tensor:
    """Return gate * sigmoid(gate) * up."""
    return gate * torch.sigmoid(gate) * up


def by_exp2(gate: Tensor, up: Tensor) -> Tensor:
    """`__expf`: ex2.approx(gate * -log2(e)), the product rounded, the result one unit up or down, as a hash says."""
    power = _off_by_a_unit(torch.exp2(gate * -math.log2(math.e)), gate)
    return gate / (1 + power) * up


def by_reciprocal(gate: Tensor, up: Tensor) -> Tensor:
    """Return gate * rcp.approx(1 + `__expf`(-gate)) * up."""
    power = _off_by_a_unit(torch.exp2(gate * -math.log2(math.e)), gate)
    return gate * simulated_rcp(1 + power) * up


def fused(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu with an FMA in exp: gate * log2(e) in two parts, so that the exponent is rounded once, then a division and a product."""
    exponent = (gate.double() * -math.log2(math.e)).float()
    rest = (gate.double() * -math.log2(math.e) - exponent.double()).float()
    rough = torch.exp2(exponent)
    power = (
        rough.double() + rough.double() * (rest * math.log(2)).double()
    ).float()  # fma(rough, rest * ln 2, rough)
    power = torch.where(rough.isinf() | rest.isnan(), rough, power)
    return gate / (1 + power) * up


ACTIVATIONS: dict[str, Activation] = {
    "division": by_division,
    "sigmoid": by_sigmoid,
    "exp2": by_exp2,
    "reciprocal": by_reciprocal,
    "fused": fused,
}


def _off_by_a_unit(value: Tensor, key: Tensor) -> Tensor:
    """Return the value, one unit up or down or neither, as a hash of the key's bits says; infinity and zero are exact."""
    draw = (key.contiguous().view(torch.int32) * 0x9E3779B1 >> 13) % 3
    up, down = torch.nextafter(value, value * 2), torch.nextafter(value, torch.zeros_like(value))
    off = torch.where(draw == 0, up, torch.where(draw == 1, down, value))
    return torch.where(value.isinf() | (value == 0), value, off)

"""How a quantizer may compute a block scale and a code in float32: the orders of operations that the contract leaves free.

    real number:  scale = gs * amax / 6        code = x * gs / scale

Each formula is written as it is computed, every operation rounded once to float32: `amax / 6 * gs` divides first. `1/y` is
the correctly rounded reciprocal, `rcp(y)` the device's approximate one (PTX rcp.approx.ftz, at most one unit off). "real"
is the real number, rounded once by the conversion to E4M3 or E2M1. "exact" and "fast" are FlashInfer's two
(csrc/nv_internal/tensorrt_llm/kernels/quantization_utils.cuh:430-512), one with correctly rounded reciprocals.

All formulas rise with amax and x, so that an interval of inputs gives an interval of results.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reciprocal = Callable[[Tensor], Tensor]
ScaleFormula = Callable[[Tensor, Tensor, Reciprocal], Tensor]
CodeFormula = Callable[[Tensor, Tensor, Tensor, Reciprocal], Tensor]

REAL = "real"
FUSED = ", not rounded"
"""After a code formula that ends in a product: the last product is compared as it is, as an FMA does."""
_LARGEST = torch.finfo(torch.float32).max


def _inv(x: Tensor) -> Tensor:
    return x.reciprocal()


SCALES: dict[str, ScaleFormula] = {
    REAL: lambda amax, gs, _: amax.double() * gs.double() / 6,
    "amax * (gs * (1/6))": lambda amax, gs, _: amax * (gs * _sixth(amax)),
    "gs * (amax * (1/6))": lambda amax, gs, _: gs * (amax * _sixth(amax)),
    "gs * (amax * rcp(6))": lambda amax, gs, rcp: gs * (amax * rcp(torch.full((), 6.0, device=amax.device))),
    "amax / 6 * gs": lambda amax, gs, _: amax / 6 * gs,
    "amax * gs / 6": lambda amax, gs, _: amax * gs / 6,
    "amax * (gs / 6)": lambda amax, gs, _: amax * (gs / 6),
    "amax * gs * (1/6)": lambda amax, gs, _: amax * gs * _sixth(amax),
    "amax / (6 / gs)": lambda amax, gs, _: amax / (6 / gs),
    "amax / (6 * (1/gs))": lambda amax, gs, _: amax / (6 * _inv(gs)),
    "amax / 6 / (1/gs)": lambda amax, gs, _: amax / 6 / _inv(gs),
    "amax * (1/6) / (1/gs)": lambda amax, gs, _: amax * _sixth(amax) / _inv(gs),
    "amax / (6 * rcp(gs))": lambda amax, gs, rcp: amax / (6 * rcp(gs)),
    "amax * rcp(6 * rcp(gs))": lambda amax, gs, rcp: amax * rcp(6 * rcp(gs)),
}
"""Block scales before their conversion: `(*, blocks)` float32 amax, broadcastable gs, to float32 (float64 of "real")."""

_FACTORS: dict[str, Callable[[Tensor, Tensor, Reciprocal], Tensor]] = {
    "x * (1/(scale * (1/gs)))": lambda scale, gs, _: _inv(scale * _inv(gs)).clamp(max=_LARGEST),
    "x * rcp(scale * rcp(gs))": lambda scale, gs, rcp: rcp(scale * rcp(gs)),
    "x * rcp(scale * (1/gs))": lambda scale, gs, rcp: rcp(scale * _inv(gs)),
    "x * (gs / scale)": lambda scale, gs, _: gs / scale,
    "x * (gs * (1/scale))": lambda scale, gs, _: gs * _inv(scale),
    "x * (gs * rcp(scale))": lambda scale, gs, rcp: gs * rcp(scale),
    "x * (1/(scale / gs))": lambda scale, gs, _: _inv(scale / gs),
    "x * rcp(scale / gs)": lambda scale, gs, rcp: rcp(scale / gs),
}
CODES: dict[str, CodeFormula] = {
    REAL: lambda x, scale, gs, _: x.double() * gs.double() / scale.double(),
    **{
        name: lambda x, scale, gs, rcp, factor=factor: x * factor(scale, gs, rcp)  # type: ignore[misc]
        for name, factor in _FACTORS.items()
    },
    "x / (scale / gs)": lambda x, scale, gs, _: x / (scale / gs),
    "x / (scale * (1/gs))": lambda x, scale, gs, _: x / (scale * _inv(gs)),
    "x / (scale * rcp(gs))": lambda x, scale, gs, rcp: x / (scale * rcp(gs)),
    "x * gs / scale": lambda x, scale, gs, _: x * gs / scale,
    "x / scale * gs": lambda x, scale, gs, _: x / scale * gs,
    "x * gs * (1/scale)": lambda x, scale, gs, _: x * gs * _inv(scale),
    "x * (1/scale) * gs": lambda x, scale, gs, _: x * _inv(scale) * gs,
    "x * gs * rcp(scale)": lambda x, scale, gs, rcp: x * gs * rcp(scale),
    "x * rcp(scale) * gs": lambda x, scale, gs, rcp: x * rcp(scale) * gs,
    **{
        name + FUSED: lambda x, scale, gs, rcp, factor=factor: x.double() * factor(scale, gs, rcp).double()  # type: ignore[misc]
        for name, factor in _FACTORS.items()
    },
}
"""Codes before their conversion: x `(*, blocks, 16)` float32, scale and gs that broadcast to it, to float32 or float64."""


def needs_rcp(formula: str) -> bool:
    """Return whether a formula takes the device's reciprocal, so that it says nothing where that is not known."""
    return "rcp(" in formula


def _sixth(like: Tensor) -> Tensor:
    return torch.full((), 6.0, device=like.device).reciprocal()

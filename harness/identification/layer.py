"""What a layer computes of which only masked_moe can be called: the questions of its stages, asked through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.candidates.protocol import stages_of, traits_of
from harness.identification.activation import ALPHA, Asked, find_activation, quantizer_of
from harness.identification.layer_call import Layer
from harness.identification.layer_sums import find_sums
from harness.identification.quantizer import find_quantizer, of_both
from harness.records.finding import Finding
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from reference.nvfp4 import BLOCK

TOKENS, ACTIVATION = "masked_moe, tokens", "masked_moe, activation"
_ENCODE_SCALES = 128  # four rows under each tell the same formulas apart as a thousand
_LOWEST_GATE, _LARGEST_UP = -8.0, 2.0**18  # that quantized tokens give together with gates of 128 and 96
_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LayerFound:
    """What was found about a layer.

    Attributes:
        findings: an answer a point, a stage for each of those that are hidden.
        arithmetic: to judge both quantizers by.
        summation: of both GEMMs, or None where it is not known: the bound judges.
        unrounded: values that stay float32, as Traits.unrounded names them; as declared where that was not found.
    """

    findings: list[Finding]
    arithmetic: Arithmetic
    summation: Summation | None
    unrounded: tuple[str, ...]


def is_opaque(candidate: Any) -> bool:
    """Return whether a candidate's layer can be asked as a whole only, and applies SwiGLU."""
    stages = stages_of(candidate)
    others = ("quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm")
    return (
        "masked_moe" in stages
        and not any(stage in stages for stage in others)
        and traits_of(candidate).gated == "silu"
        and "silu" in traits_of(candidate).activations
    )


def find_layer(candidate: Any, arithmetic: Arithmetic) -> LayerFound:
    """Return what a candidate's masked_moe computes in its hidden stages.

    Args:
        candidate: that `is_opaque`.
        arithmetic: as declared, with the device's reciprocal where it is known.
    """
    layer, traits = Layer(candidate), traits_of(candidate)
    tokens, hidden = (
        find_quantizer(stage, quantize, traits, arithmetic, special=False, encode_scales=_ENCODE_SCALES)
        for stage, quantize in (
            (TOKENS, layer.quantizer()),
            (ACTIVATION, quantizer_of(layer.activation(), BLOCK)),
        )
    )
    activation = find_activation(asked_of(layer))
    types = {f.point: f.found for f in activation if f.point in ("gemm1", "hidden")}
    sums = find_sums(layer, _type_of_sums(types))
    return LayerFound(
        [*tokens.findings, *sums.findings, *activation, *hidden.findings],
        of_both(tokens, hidden),
        sums.summation,
        _unrounded(types, traits.unrounded),
    )


def asked_of(layer: Layer) -> Asked:
    """Return the activation between a layer's GEMMs, for `find_activation`."""
    return Asked(
        layer.activation(),
        ACTIVATION,
        bits=10,
        gemm1=(torch.bfloat16, torch.float32, torch.float16),
        scaled=layer.activation(ALPHA),
        lowest=_LOWEST_GATE,
        most=_LARGEST_UP,
    )


def _type_of_sums(types: dict[str, str]) -> torch.dtype | None:
    """Return the type that a sum of the first GEMM has when it is quantized, under a gate whose silu is a power of two."""
    if any(name not in _TYPES for name in types.values()):
        return None
    return torch.float32 if set(types.values()) == {"float32"} else torch.bfloat16


def _unrounded(types: dict[str, str], declared: tuple[str, ...]) -> tuple[str, ...]:
    """Return what was found to stay float32, in the order of the traits; as declared where the types are not known."""
    return tuple(
        name
        for name in ("gemm1", "hidden")
        if types[name] == "float32" or (types[name] not in _TYPES and name in declared)
    )

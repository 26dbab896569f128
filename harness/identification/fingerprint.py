"""A short hash of what a candidate computes: another version or another GPU that changes one bit is seen at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import Traits, stages_of, traits_of
from harness.identification.quantizer import as_quantizer
from harness.identification.quantizer_probe import near_boundaries, quantized
from harness.judging.context import Context, Known
from harness.problems.problem import Problem
from harness.records.finding import Finding

_ENCODE_SCALES, _ROWS_OF_SCALE = 32, 4
_LENGTH = 12  # hexadecimal digits
_ROWS, _INTER = 8, 128
_HIDDEN, _NEAR_HIDDEN = 1024, 128  # the second of candidates that are too slow for the first


def fingerprint_of(candidate: Any, findings: list[Finding]) -> str:
    """Return the hash of the findings and of outputs on a fixed set of operands; "" of a candidate whose bits vary.

    Args:
        candidate: an object of the candidate protocol that can run here.
        findings: what was found about it.
    """
    traits = traits_of(candidate)
    if not traits.deterministic:
        return ""
    digest = hashlib.sha256()
    for finding in findings:
        digest.update(f"{finding.stage} {finding.point} {finding.found} {finding.modes}\n".encode())
    for output in _outputs(candidate):
        digest.update(bytes(output.contiguous().view(-1).view(torch.uint8).tolist()))
    return digest.hexdigest()[:_LENGTH]


def _outputs(candidate: Any) -> Iterator[Tensor]:
    """Yield what each stage makes of operands that are the same on every machine, valid rows only."""
    stages, traits = stages_of(candidate), traits_of(candidate)
    if "quantize_grouped" in stages and traits.activation_format == "nvfp4":
        experts = traits.at_most_experts(max(_ENCODE_SCALES, traits.min_experts))
        yield from quantized(as_quantizer(candidate), traits, near_boundaries(experts, _ROWS_OF_SCALE))
    ctx = Context(candidate, _problem(traits), Known.declared(traits))
    rows, t = ctx.rows(), ctx.tensors
    if "silu_mul_quantize_grouped" in stages:
        yield ctx.silu_mul_quantize(t.gate_up, t.a2_scale).valid_bytes(rows)
    if "masked_grouped_gemm" in stages:
        yield rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha, dtype=ctx.out_dtype))
    if "masked_moe" in stages:
        yield rows.take(ctx.moe())


def _problem(traits: Traits) -> Problem:
    """Return a problem whose sums are rounded in every order of additions."""
    hidden = _HIDDEN if traits.far else _NEAR_HIDDEN
    rows = -(-_ROWS // traits.m_multiple) * traits.m_multiple
    wide, narrow = (-(-k // traits.width_multiple) * traits.width_multiple for k in (hidden, _INTER))
    experts = traits.min_experts
    # Of version 1: fingerprints are compared with those of older records.
    return Problem(experts, rows, wide, narrow, (rows,) * experts, "spread", seed=1, version=1)

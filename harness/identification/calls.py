"""One call of a candidate's masked_grouped_gemm on the operands of a probe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import Traits, traits_of
from harness.judging.probe_operands import Forms
from reference.formats import FORMATS, Coded


def call_gemm(
    candidate: Any, a: Coded, b: Coded, dtype: torch.dtype, alpha: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Return what the candidate stored, every expert on the same operands, `(experts, rows, n)` on the CPU.

    Args:
        candidate: an object of the candidate protocol.
        a: `(rows, k)` in the candidate's format; rows are a multiple of what the traits say, and all of them are valid.
        b: `(n, k)`, likewise.
        dtype: of the output.
        alpha: `(experts,)` float32; None: 1 for the fewest experts that the candidate takes.
    """
    traits = traits_of(candidate)
    alpha = torch.ones(traits.min_experts) if alpha is None else alpha
    experts, rows, columns = len(alpha), len(a.codes), len(b.codes)
    out = layouts.empty_out(experts, rows, columns, dtype, traits.device, 0.0)
    # Copies: a candidate may write to what it gets.
    left, right = (side.map(lambda t: t.repeat(experts, 1, 1).to(traits.device)) for side in (a, b))
    forms = forms_of(traits)
    candidate.masked_grouped_gemm(
        *layouts.stored(forms[0], left),
        *layouts.stored(forms[1], right),
        out,
        torch.full((experts,), rows, dtype=torch.int32, device=traits.device),
        alpha.to(traits.device, copy=True),
    )
    return out.permute(2, 0, 1).cpu()


def forms_of(traits: Traits) -> Forms:
    """Return the formats of both operands of masked_grouped_gemm."""
    return FORMATS[traits.activation_format], FORMATS[traits.weight_format]


def widest_type(traits: Traits) -> torch.dtype:
    """Return the output type that shows most of an accumulator."""
    name = "float32" if "float32" in traits.out_dtypes else traits.out_dtypes[0]
    return getattr(torch, name)  # type: ignore[no-any-return]


def multiple(wanted: int, of: int) -> int:
    """Return the next multiple."""
    return -(-wanted // of) * of

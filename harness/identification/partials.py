"""In which type a GEMM holds the sums of parts of k, found where the order within the parts is not known.

Sums that are exact in every order are asked for: a float32 GEMM stores the exact number, however it adds. One that rounds
the sums of parts stores the sum of rounded numbers, and those are known, since the parts are exact as well.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import traits_of
from harness.identification.calls import call_gemm, forms_of, multiple
from harness.judging.predicted import orders_of
from harness.judging.probe_operands import certain_rows, with_certain_rows
from reference.matrix_units import Summation

_K, _ROWS, _COLUMNS = 1024, 40, 64
_TYPES = ("bfloat16", "float16")


def find_partials(candidate: Any) -> tuple[str, str]:
    """Return "float32", or the type and the cuts of k with which every certain sum is given; "" where none does; and by what.

    Args:
        candidate: with masked_grouped_gemm and a float32 output.
    """
    traits = traits_of(candidate)
    k, rows, columns = (
        multiple(_K, traits.k_multiple),
        multiple(_ROWS, traits.m_multiple),
        multiple(_COLUMNS, traits.n_multiple),
    )
    forms = forms_of(traits)
    a, b = with_certain_rows(rows, columns, k, forms)
    stored = call_gemm(candidate, a, b, torch.float32)[0][certain_rows(rows)][:, ::2]
    left = forms[0].values(a, torch.float64)[certain_rows(rows)]
    right = forms[1].values(b, torch.float64)[::2]
    evidence = f"{stored.numel()} sums that are exact in every order, at k {k:,}"
    if torch.equal(stored.double(), left @ right.T):
        return "float32", evidence
    for order in orders_of(Summation("exact"), k)[1:]:
        if order.promote or order.lanes > 1:
            continue
        for partial in _TYPES:
            if torch.equal(_added(left, right, replace(order, partial=partial)), stored):
                return partial, f"{evidence}, with {str(order).partition('; ')[2]}"
    return "", f"no order of parts gives {evidence}"


def _added(a: Tensor, b: Tensor, order: Summation) -> Tensor:
    """Return a @ b.T, each part exact and rounded, the parts added in float32."""
    cuts = (0, *order.order(a.shape[1]).cuts, a.shape[1])
    parts = [
        (a[:, low:high] @ b[:, low:high].T).float().to(getattr(torch, order.partial)).float()
        for low, high in pairwise(cuts)
    ]
    if order.reverse:
        parts.reverse()
    while order.pairwise and len(parts) > 1:
        parts = [sum(parts[i : i + 2][1:], parts[i]) for i in range(0, len(parts), 2)]
    return sum(parts[1:], parts[0])

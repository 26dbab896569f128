"""Whether the order along k that was found holds at the shape of a problem, asked where a problem's bits deny it.

The candidate is called once more, at the shape of the problem, on the operands of a probe. A tile that an order explains
there has no excuse for the problem's bits. A tile that none explains is added in an order that is not known at this shape,
and the bound judges it; unless the probe shows a fault: sums that are exact in every order came out otherwise, or outside
the bound.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.judging.predicted import Prediction, tiles
from harness.judging.probe_operands import Forms, with_certain_rows
from reference.bounds import LegalOutput
from reference.matrix_units import Summation


def asked_again(
    calls: Any,
    summation: Summation,
    out: Tensor,
    k: int,
    alpha: Tensor | None,
    masked_m: Tensor,
    forms: Forms,
) -> tuple[Prediction, Tensor]:
    """Return the operands of a probe at the shape of a problem, and what the candidate makes of them.

    Args:
        calls: the candidate's stages.
        summation: how it adds where that is known.
        out: `(experts, capacity, n)` of the problem: its shape, type and device are the probe's.
        k: of the problem.
        alpha: of the problem.
        masked_m: `(experts,)` int32 of the problem.
        forms: of the operands.
    """
    experts, capacity, n = out.shape
    a, b = (
        side.map(lambda t: t.to(out.device).expand(experts, -1, -1).contiguous())
        for side in with_certain_rows(capacity, n, k, forms)
    )
    got = layouts.empty_out(experts, capacity, n, out.dtype, out.device.type, 0.0)
    given = (*layouts.stored(forms[0], a), *layouts.stored(forms[1], b))
    calls.masked_grouped_gemm(*given, got, masked_m, alpha)
    left, right = (form.values(side) for form, side in zip(forms, (a, b), strict=True))
    sides = left, a.block_scale, right, b.block_scale
    return Prediction(summation, *sides, forms=forms), got.permute(2, 0, 1)


def not_known_here(
    bad: Tensor, legal: LegalOutput, out: Tensor, probe_bad: Tensor, probe_legal: LegalOutput, probe_out: Tensor
) -> Tensor:  # fmt: skip
    """Return the tiles of an expert that no order explains on the probe either, and that the bound accepts.

    Args:
        bad: `(rows, n)` bool, of the problem: not as predicted, nor by another order.
        legal: by the bound alone.
        out: `(rows, n)`.
        probe_bad: the same of the probe.
        probe_legal: likewise.
        probe_out: likewise.

    Returns:
        `(rows, n)` bool, whole tiles.
    """
    found = inside_the_bound(bad, legal, out)
    legal_sums = probe_legal.accepts(probe_out) & (probe_legal.low != probe_legal.high)
    for tile in tiles(found):
        unexplained = probe_bad[tile]
        found[tile] = bool(unexplained.any()) and bool(legal_sums[tile][unexplained].all())
    return found


def inside_the_bound(bad: Tensor, legal: LegalOutput, out: Tensor) -> Tensor:
    """Return the tiles, `(rows, n)` bool, that hold one of the bad elements, none of which the bound refuses."""
    found, inside = torch.zeros_like(bad), legal.accepts(out)
    for tile in tiles(bad):
        found[tile] = bool(inside[tile].all())
    return found

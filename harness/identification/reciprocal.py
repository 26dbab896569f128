"""The device's reciprocal, where it is known."""

from __future__ import annotations

from typing import Any

import torch

from harness.candidates.errors import in_words
from harness.candidates.protocol import stages_of, traits_of
from harness.judging.comparison import Comparison
from harness.judging.context import Context, Known, device_is_lost
from harness.judging.quantize import QuantizerInput
from harness.judging.reciprocal import verified
from harness.problems.problem import Problem
from reference.bounds import Accumulator
from reference.legal import Arithmetic
from reference.quantizer_formulas import Reciprocal


def quantizes_with(candidate: Any, reciprocal: Reciprocal) -> bool:
    """Return whether the candidate's own quantizer agrees with a reciprocal, on tokens with many near-ties.

    A correct kernel need not use the approximate instruction; one that does not must not be judged by its bits. A broken
    quantizer disagrees with the tighter and with the looser arithmetic alike, so nothing is lost.
    """
    traits = traits_of(candidate)
    if "quantize_grouped" not in stages_of(candidate):
        return True
    experts = traits.at_most_experts(max(traits.min_experts, 8))
    rows = max(64, traits.m_multiple)
    problem = Problem(
        experts, rows, 4 * traits.width_multiple, traits.width_multiple, (rows,) * experts, seed=1
    )
    try:
        for known in (Arithmetic("fast", reciprocal), Arithmetic("fast")):
            found = _quantized(Context(candidate, problem, Known(known, Accumulator())))
            if not any(c.illegal for c in found):
                return known.reciprocal is not None
    except Exception as error:
        if device_is_lost(error):
            raise
    return True


def _quantized(ctx: Context) -> list[Comparison]:
    t, rows = ctx.tensors, ctx.rows()
    got = ctx.quantize(t.x, t.input_scale)
    given = QuantizerInput.known(rows.take(t.x))
    return ctx.judge_quantized("quantize", given, *got.valid(rows), t.input_scale, rows)


def find_reciprocal(candidate: Any) -> tuple[Reciprocal | None, str]:
    """Return the device's rcp.approx.ftz as a function, or None, and how it was found in words."""
    own = getattr(candidate, "reciprocal", None)
    if own is not None:
        return verified(own), "known: the candidate gives its reciprocal; one scale and one code are legal"
    if traits_of(candidate).device != "cuda":
        return None, "not probed: no CUDA device; next to a rounding boundary two codes are legal"
    try:
        from harness.identification.probe_rcp import device_reciprocal

        device_reciprocal(torch.tensor([6.0], device="cuda"))
    except Exception as error:  # noqa: BLE001 - triton missing or failing leaves the range of one unit, nothing worse
        return (
            None,
            f"not probed: {in_words(error)}; next to a rounding boundary two codes are legal",
        )
    return device_reciprocal, "probed: rcp.approx.ftz of the GPU under test; one scale and one code are legal"

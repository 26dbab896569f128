"""Calls of a routed layer as cases: each is judged on its own inputs, and compared with `eager` and `physical` on them."""

from __future__ import annotations

import contextlib
from typing import Any, Self

from torch import Tensor

from harness.candidates.eager import EagerKernels
from harness.candidates.physical import PhysicalKernels
from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import Observed
from harness.diagnosis.cases.replay import ReplayError
from harness.diagnosis.cases.views import input_bytes, seen
from harness.emulation.quantize import Reciprocal
from harness.judging.routed import Computed, LegalRouted, legal
from reference.final_sum import FinalSum


class _Whole:
    """What a right routed layer is asked: it computes all tokens, whichever are compared."""

    takes_twice = True

    def keep_to(self, _: Any) -> Self:
        """Return the same model."""
        return self


class _Eager(EagerKernels, _Whole):
    """`eager`, in the formats of a call."""

    takes_twice = True


class _Physical(PhysicalKernels, _Whole):
    """`physical`, in the formats of a call, with the candidate's own reciprocal where that is known."""

    known: Reciprocal | None = None

    def reciprocal(self, x: Tensor) -> Tensor:
        """Return rcp.approx.ftz of float32."""
        return super().reciprocal(x) if self.known is None else self.known(x)


def legal_routed(call: Observed, bounds: Bounds) -> LegalRouted:
    """Return the legal outputs of a call."""
    how = Computed(
        call.forms,
        FinalSum.of(call.final_sum),
        bounds.arithmetic,
        bounds.accumulator,
        bounds.summation,
        bounds.unrounded,
        bounds.second,
        bounds.rounded,
    )
    return legal(call.arguments, how)


def routed_cases(call: Observed, bounds: Bounds) -> list[CallCase]:
    """Return a call's output as a case, and its inputs where it changed them."""
    views = {"output": legal_routed(call, bounds).accepts(call.output).view(seen(call).shape)}
    if call.changed:
        views["inputs"] = seen(call, "inputs") == input_bytes(call.arguments)
    cases = []
    for view, mask in views.items():
        if view == "output" or not bool(mask.all()):
            with contextlib.suppress(ReplayError):
                cases.append(CallCase(call, mask, _models(call, bounds), bounds, view))
    return cases


def _models(call: Observed, bounds: Bounds) -> list[Any]:
    """Return the right implementations, the likeliest first."""
    traits = call.traits
    declared: dict[str, Any] = {
        "activation_format": traits.activation_format, "weight_format": traits.weight_format, "k_multiple": 128,
        "activations": traits.activations, "final_sum": call.final_sum, "unrounded": tuple(bounds.unrounded),
    }  # fmt: skip
    eager, fused = _Eager(**declared), _Eager(**declared)
    physical, plain = _Physical(**declared), _Physical(**declared)
    fused.sums_with_fma, plain.sums_with_fma = True, False
    physical.known = plain.known = bounds.arithmetic.reciprocal
    return [eager, fused, physical] if bounds.arithmetic.kind == "real" else [physical, plain, eager]

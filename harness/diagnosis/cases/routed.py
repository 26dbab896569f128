"""Calls of a routed layer as cases: each is judged on its own inputs, and compared with `eager` and `physical` on them."""

from __future__ import annotations

import contextlib
from typing import Any, Self

import torch
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
from reference.activations import Activation
from reference.epilogue import Epilogue
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


class _RoundedFirst(_Eager):
    """`eager`, whose GEMMs have epilogues of their own; the second multiplies by factor and routing weight together.

    Args:
        first: the first GEMM's epilogue.
        second: the second's.
        gate: whether the function of the gate is rounded before it is multiplied with up.
        declared: traits.
    """

    weighs_rows = True

    def __init__(self, first: Epilogue, second: Epilogue, *, gate: bool, **declared: Any) -> None:
        super().__init__(**declared)
        self._first, self._second, self._gate = first, second, gate

    def masked_grouped_gemm(
        self, a: Tensor, a_scale: Any, b: Tensor, b_scale: Tensor, out: Tensor, masked_m: Tensor, alpha: Tensor | None,
        factors: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Write the first GEMM's products, or, with the factors of its rows `(l, m, 1)`, the second's."""
        sums = torch.full(out.shape, torch.nan)
        super().masked_grouped_gemm(a, a_scale, b, b_scale, sums, masked_m, None)
        for expert, rows in enumerate(masked_m.tolist()):
            if not rows:
                continue
            epilogue, scale = self._first, torch.ones(()) if alpha is None else alpha[expert]
            if factors is not None:
                epilogue = self._second
                scale = epilogue.joined(scale, factors[expert, :rows])
            out[:rows, :, expert] = epilogue(sums[:rows, :, expert], scale, out.dtype)

    def silu_mul_quantize_grouped(self, gate_up: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> Any:
        """Apply the activation, its function of the gate rounded where the kernel's is."""
        hidden = self.activated(gate_up, Activation.of(self.traits.gated))
        return self.quantize_grouped(hidden.contiguous(), masked_m, global_scale_enc)

    def activated(self, gate_up: Tensor, way: Activation) -> Tensor:
        """Return an activation with a gate in gate_up's type."""
        own = gate_up.dtype
        if not self._gate:
            return way.value(gate_up.double()).float().to(own)
        gate, up = (half.double() for half in way.clamped(*way.split(gate_up)))
        rounded = way.of_gate(gate).float().to(own)
        return (rounded.double() * (up + way.beta if way.beta else up)).float().to(own)


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
    first, second = bounds.accumulator.epilogue, (bounds.second or bounds.accumulator).epilogue
    if second.joins:
        likely = "gate" in bounds.rounded
        return [_RoundedFirst(first, second, gate=gate, **declared) for gate in (likely, not likely)]
    eager, fused = _Eager(**declared), _Eager(**declared)
    physical, plain = _Physical(**declared), _Physical(**declared)
    fused.sums_with_fma, plain.sums_with_fma = True, False
    physical.known = plain.known = bounds.arithmetic.reciprocal
    return [eager, fused, physical] if bounds.arithmetic.kind == "real" else [physical, plain, eager]

"""What the stages of a masked MoE may return: the legal ranges of a GEMM and of an activation, of ranges of their operands.

Every stage turns an interval of each element into an interval. A quantization turns it into the hull of all values that
legal scales and legal codes can give, ambiguous ones included; a GEMM into center +- radius with radius @ |weights|
added. The result is sound but wider than judging stage by stage: see docs/bounds.md for what it can still see.

Where the summation of the GEMMs is known, what is one value stays one: a row whose codes and scales are all certain gives
the sums that the matrix unit returns, and only rows that have a code or a scale next to a rounding boundary stay intervals.

Rule: MOE-2 (opaque layer).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reference.activations import Activation
from reference.bounds import Accumulator, Stores
from reference.certificate import FLOAT64_BITS, certified, step_exponents, steps_of_scales
from reference.exact_products import Products, Side, exact_products
from reference.formats import NVFP4, Format, multiplied_in
from reference.intervals import Interval as Interval  # noqa: PLC0414 - what everything here takes and returns
from reference.matrix_units import Summation

_PART = 64  # products along k that lie in one part where k is split among thread blocks


@dataclass(frozen=True)
class Added:
    """How the candidate's GEMMs add.

    Attributes:
        accumulator: what is measured or assumed of it.
        summation: bit for bit, where it is known.
        forms: formats of what they multiply.
    """

    accumulator: Accumulator
    summation: Summation | None = None
    forms: tuple[Format, Format] = (NVFP4, NVFP4)


def gemm(
    a: Interval,
    b: Tensor,
    alpha: Tensor | None,
    dtype: torch.dtype,
    added: Added,
    b_scale: Tensor | None = None,
    weight: Tensor | None = None,
) -> Interval:
    """Return the range of a GEMM's stored output.

    Args:
        a: `(m, k)`.
        b: `(n, k)` floating point, known exactly.
        alpha: `()` float32 or None.
        dtype: output type.
        added: how the candidate adds.
        b_scale: `(n, k / 16)` floating point, decoded block scales of b; with a summation.
        weight: `(m, 1)` float32, a factor of each row that the epilogue multiplies with, not negative; None for 1.

    Returns:
        Interval of `(m, n)`, ends being values of the output type.
    """
    accumulator, summation = added.accumulator, added.summation.at(b.shape[1]) if added.summation else None
    if summation is not None and a.scale is not None and summation.rounds_once(b.shape[1]):
        certain = a.certain() & (added.forms[0].scale != "float32")
        products = _exact(a.low[certain], b, (a.scale[certain], b_scale), added.forms)
        if products.exact and bool(certain.any()):
            return _certain_rows(a, certain, products.values, (b, alpha, dtype, added, b_scale, weight))
    weights = b.double()
    center = a.center() @ weights.T
    magnitude = torch.maximum(a.low.abs(), a.high.abs()) @ weights.abs().T
    slack = magnitude * (accumulator.units(b.shape[1]) + b.shape[1] * 2.0**-52)
    if summation is not None and summation.stream:
        slack, summation = slack + _streamed(a, weights, dtype), None
    if added.forms[0].rows or added.forms[0].scale == "float32":  # products with float32 scales are rounded
        slack += magnitude * (accumulator.units(added.forms[0].block or b.shape[1]) + 2.0**-21)
    if not bool((a.low == a.high).all()):
        slack += a.radius() @ weights.abs().T
    slack = slack.masked_fill(center.isinf(), 0.0)  # by an element that is infinite for certain: see below
    stores = Stores(accumulator.epilogue, alpha, dtype, weight)
    low, high = (end.double() for end in stores.between(center - slack, center + slack))
    if summation is not None and a.scale is not None and b_scale is not None:
        rows = a.certain()
        undecided = (low != high)[rows] & center[rows].isfinite()
        if (
            summation.unit.fraction is None and added.forms[0].element != "e2m1"
        ):  # exact models hold where float64 does
            steps = step_exponents(a.low[rows]), step_exponents(weights)
            undecided &= certified(magnitude[rows] * (1 + b.shape[1] * 2.0**-52), *steps, FLOAT64_BITS)
        if bool(undecided.any()):
            left, right = (
                summation.operand(*side, multiplied_in(added.forms[0], summation.name, form), form.scale)
                for side, form in zip(((a.low[rows], a.scale[rows]), (b, b_scale)), added.forms, strict=True)
            )
            where = torch.zeros_like(low, dtype=torch.bool)
            where[rows] = undecided
            sums = summation.chosen(left, right, undecided)
            low[where], high[where] = (end.double() for end in stores.range(sums, where))
    # An element that may be a number or infinite, as float16 has them, says nothing of the sums of its row.
    ends = torch.stack((a.low, a.high))
    anything = ((a.low != a.high) & ends.isinf().any(0)).any(-1, keepdim=True)
    return Interval(low.masked_fill(anything, -torch.inf), high.masked_fill(anything, torch.inf))


def _exact(
    a: Tensor, b: Tensor, scales: tuple[Tensor, Tensor | None], forms: tuple[Format, Format]
) -> Products:
    """Return a @ b.T; the steps of NVFP4 operands are seen in their block scales, as long as that certifies the products."""
    of_a, of_b = scales
    if forms == (NVFP4, NVFP4) and of_b is not None:
        products = exact_products(Side(a, steps_of_scales(of_a)), Side(b, steps_of_scales(of_b)))
        if products.exact:
            return products
    return exact_products(Side(a), Side(b))


def _certain_rows(a: Interval, certain: Tensor, sums: Tensor, given: tuple[Any, ...]) -> Interval:
    """Return the range of a GEMM whose accumulator holds exact sums, rounded once: of certain rows one value each.

    Args:
        a: `(m, k)`.
        certain: `(m,)` bool, rows that are known exactly.
        sums: `(rows, n)` float64, their exact products.
        given: arguments of `gemm` from `b` on.
    """
    b, alpha, dtype, added, b_scale, weight = given
    low = sums.new_empty((len(certain), sums.shape[1]))
    high = low.clone()
    of_certain, of_others = (None, None) if weight is None else (weight[certain], weight[~certain])
    ends = Stores(added.accumulator.epilogue, alpha, dtype, of_certain).range(sums)
    low[certain], high[certain] = (end.double() for end in ends)
    if len(sums) < len(certain):
        rest = Interval(a.low[~certain], a.high[~certain])
        others = gemm(rest, b, alpha, dtype, added, b_scale, of_others)
        low[~certain], high[~certain] = others.low, others.high
    return Interval(low, high)


def _streamed(a: Interval, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far parts of k, rounded to the output's type and added in it in any order, may be from the sum.

    A part is some blocks of 64 products, rounded once, or twice with a factor; each addition rounds a sum of parts once more.
    None of these is larger than the sum of the magnitudes of all blocks' sums, and there are as many parts as blocks at most.
    """
    blocks = range(0, weights.shape[1], _PART)
    center, radius = a.center(), a.radius()
    total = weights.new_zeros(len(center), len(weights))
    for begin in blocks:
        part = slice(begin, begin + _PART)
        total += (center[:, part] @ weights[:, part].T).abs() + radius[:, part] @ weights[:, part].abs().T
    unit = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}[
        dtype
    ]  # half a step of 1
    return total * (math.expm1((len(blocks) + 2) * math.log1p(unit)))


def activated(
    gemm1: Interval,
    way: Activation,
    dtype: torch.dtype = torch.bfloat16,
    weight: Tensor | None = None,
    rounded: Collection[str] = (),
) -> Interval:
    """Return the range of an activation with a gate for `(m, 2n)`, times `weight` `(m, 1)` where given, rounded to `dtype`.

    Its function falls to its minimum, silu's at about -1.278, and rises from there: an interval across it includes that
    minimum. With "gate" in `rounded` the function's value may be rounded to `dtype` before it is multiplied with up.
    """
    (gate_low, up_low), (gate_high, up_high) = (
        way.clamped(*way.split(end)) for end in (gemm1.low, gemm1.high)
    )
    if way.beta:
        up_low, up_high = up_low + way.beta, up_high + way.beta
    turning, minimum = way.minimum()
    ends = torch.stack((way.of_gate(gate_low), way.of_gate(gate_high)))
    low, high = ends.amin(0), ends.amax(0)
    low = torch.where((gate_low < turning) & (gate_high > turning), minimum, low)
    # float32 arithmetic before the rounding to bfloat16: see docs/bounds.md, "Activation"
    largest = way.alpha * torch.maximum(gate_low.abs(), gate_high.abs())
    freedom = ((1.173 * largest + 6) * 2.0**-23).masked_fill(
        largest.isinf(), 0.0
    )  # of an infinite gate nothing is free
    if "gate" in rounded:
        stored = _widened(low, high, freedom)
        low = torch.minimum(low, stored.low.to(dtype).double())
        high = torch.maximum(high, stored.high.to(dtype).double())
    products = torch.stack((low * up_low, low * up_high, high * up_low, high * up_high))
    low, high = products.amin(0), products.amax(0)
    if way != replace(way, kind="silu", alpha=1.0, beta=0.0):  # more steps, and 1 + erf(x) cancels
        lost = largest * torch.maximum(up_low.abs(), up_high.abs()) * 2.0**-20
        low, high = low - lost, high + lost
    hidden = _weighted(_widened(low, high, freedom), weight, dtype)
    anything = gemm1.anything()
    gate_any, up_any = (half.bool() for half in way.split(anything.double()))
    return Interval(
        hidden.low.masked_fill(gate_any | up_any, -torch.inf),
        hidden.high.masked_fill(gate_any | up_any, torch.inf),
    )


def relu2(gemm1: Interval, dtype: torch.dtype = torch.bfloat16, weight: Tensor | None = None) -> Interval:
    """Return the range of max(x, 0)^2, computed in float32, times `weight` where given, and rounded to `dtype`."""
    squares = (end.clamp(min=0).square().float() for end in (gemm1.low, gemm1.high))
    return _weighted(Interval(*squares), weight, dtype)


def _weighted(hidden: Interval, weight: Tensor | None, dtype: torch.dtype) -> Interval:
    """Return an activation rounded to `dtype`; times a weight, not negative, one rounding of float32 before that."""
    if weight is not None:
        hidden = _widened(
            hidden.low.double() * weight.double(), hidden.high.double() * weight.double(), 2.0**-23
        )
    return Interval(*(end.to(dtype).double() for end in (hidden.low, hidden.high)))


def _widened(low: Tensor, high: Tensor, relative: Tensor | float) -> Interval:
    """Return a range that is wider by so much of each end; of an infinite end nothing is free."""
    ends = ((low, low - low.abs() * relative), (high, high + high.abs() * relative))
    return Interval(*(torch.where(end.isinf(), end, wider) for end, wider in ends))

"""Cheap statistics of what differs: they order the hypotheses and propose strengths. They decide nothing."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.hypotheses.hypothesis import Hypothesis
from harness.faults.fault import Fault

_NICE = 0.004  # bfloat16 rounding of each element moves a median ratio by less


def gain(case: CallCase) -> float | None:
    """Return the median of observed over healthy at the illegal elements, None where it says nothing."""
    if case.call.has_codes:
        return None
    o, h = case.seen[case.illegal].double(), case.healthy[case.illegal].double()
    usable = o.isfinite() & h.isfinite() & (h != 0)
    if int(usable.sum()) < 4:
        return None
    ratio = o[usable] / h[usable]
    middle = float(ratio.median())
    spread = float((ratio - middle).abs().median())
    return middle if middle != 0 and spread < 0.02 * abs(middle) else None


def nice(value: float) -> float:
    """Return the simple number that a measured factor stands for: a power of two, a small fraction, or itself."""
    if value <= 0:
        return -nice(-value) if value else value
    exponent = round(torch.log2(torch.tensor(value, dtype=torch.float64)).item())
    if abs(2.0**exponent / value - 1) < _NICE:
        return 2.0**exponent
    for number in (value, 1 / value):
        fraction = Fraction(number).limit_denominator(20)
        if fraction and abs(float(fraction) / number - 1) < _NICE and abs(fraction - 1) > _NICE:
            return float(fraction) if number == value else float(1 / fraction)
    return float(f"{value:.4g}")


def fitted(tried: list[Hypothesis], cases: Sequence[CallCase]) -> list[Hypothesis]:
    """Return faults whose strength is a factor, with the factor that was measured."""
    factors = {nice(g) for case in cases if (g := gain(case)) is not None}
    by_name: dict[str, Fault] = {h.fault.name: h.fault for h in tried}
    return [
        Hypothesis(fault, factor, fitted=True)
        for fault in by_name.values()
        for factor in sorted(factors)
        if all(isinstance(s, float) for s in fault.strengths) and factor not in fault.strengths
    ]


def order(tried: list[Hypothesis], cases: Sequence[CallCase]) -> list[Hypothesis]:
    """Order hypotheses by how well their kind fits: what matters only if time runs out."""
    factors = [g for case in cases if (g := gain(case)) is not None]

    def far(hypothesis: Hypothesis) -> float:
        if factors and isinstance(hypothesis.strength, float):
            return min(abs(hypothesis.strength - g) for g in factors)
        return 1.0

    return sorted(tried, key=far)

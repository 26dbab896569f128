"""Numbers as people write them: lists, shares, strengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

_MOST = 8  # numbers or ranges in one list


def numbers(values: Sequence[int]) -> str:
    """Return sorted numbers as words: "3", "3 and 5", "3 to 7", "0, 4, 8, ... (every 4th)"."""
    values = sorted(set(values))
    if not values:
        return "none"
    steps = {b - a for a, b in pairwise(values)}
    if len(values) > 3 and len(steps) == 1 and steps != {1}:
        return f"{values[0]}, {values[1]}, ... {values[-1]} (every {_ordinal(steps.pop())})"
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    words = []
    for first, last in runs:
        words += (
            [f"{first}"]
            if first == last
            else [f"{first}", f"{last}"]
            if last == first + 1
            else [f"{first} to {last}"]
        )
    if len(words) > _MOST:
        return f"{', '.join(words[:_MOST])}, ... ({len(values)} of them)"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in {11, 12, 13} else 0, "th")
    return f"{number}{ending}"


def percent(share: float, least: float = 0.001) -> str:
    """Return a share in percent that says 100 only where it is all, and "under" where it is less than the least one."""
    if share == 1:
        return "100 %"
    return f"under {least * 100:g} %" if share < least else f"{min(share * 100, 99.9):.3g} %"


def strength_words(strength: Any) -> str:
    """Return a strength as people write it: "x0.0625 = 1/16", "x1.01", "8"; "" for none."""
    if strength is None:
        return ""
    if not isinstance(strength, float):
        return str(strength)
    words = f"x{strength:.6g}"
    fraction = Fraction(strength).limit_denominator(64)
    if fraction and fraction.denominator > 1 and math.isclose(float(fraction), strength, rel_tol=1e-4):
        return f"{words} = {fraction}"
    return words

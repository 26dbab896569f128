"""Tables of probabilities, for both halves of the error rates' document."""

from __future__ import annotations

import math
from collections.abc import Sequence

QUESTIONS = 1319
Rates = dict[str, float]
"""Probability of each verdict, by its label."""


def shown(rates: Rates, *starts: str) -> str:
    """Return the probability of the verdicts that begin like this; near 1, how far it is from 1."""
    inside = math.fsum(mass for label, mass in rates.items() if label.startswith(starts))
    outside = math.fsum(mass for label, mass in rates.items() if not label.startswith(starts))
    if inside < 1e-12:
        return "0"
    if outside < 1e-12:
        return "1"
    return f"1 - {outside:.1e}" if outside < 1e-3 else f"{inside:.1e}" if inside < 1e-3 else f"{inside:.3f}"


def table(corner: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows)]) + "\n"

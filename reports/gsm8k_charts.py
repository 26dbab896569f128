"""Geometry of the GSM8K charts, as numbers and strings: intervals, the way there, histograms of answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.text import count

WIDTH = 400
LEFT, RIGHT, TOP, ROW = 96, 44, 24, 26
BINS = 24
HEIGHT, FLOOR, CEILING = 150, 112, 14


@dataclass(frozen=True)
class Mark:
    """A labelled place on an axis."""

    at: str
    label: str


@dataclass(frozen=True)
class IntervalRow:
    """One estimate with its interval."""

    y: int
    label: str
    at: str
    low: str
    high: str
    value: str


@dataclass(frozen=True)
class IntervalChart:
    """Estimates below each other on one axis of accuracy, with lines for thresholds."""

    height: int
    floor: int
    rows: list[IntervalRow]
    ticks: list[Mark]
    lines: list[Mark]
    summary: str


Estimate = tuple[str, float, float, float]
"""Label, share, low, high."""


def interval_chart(estimates: list[Estimate], thresholds: list[tuple[str, float]]) -> IntervalChart | None:
    """Lay out estimates with their intervals; the axis shows what they and the thresholds span, not always 0 to 1."""
    if not estimates:
        return None
    values = [v for _, *three in estimates for v in three] + [value for _, value in thresholds]
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (max(values) - min(values)) <= 6 * s or s == 0.2)
    first = max(0.0, math.floor(min(values) / step - 0.25) * step)
    last = min(1.0, math.ceil(max(values) / step + 0.25) * step)

    def place(value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * (value - first) / (last - first):.1f}"

    rows = [
        IntervalRow(TOP + ROW * i, label, place(share), place(low), place(high), f"{share:.3f}")
        for i, (label, share, low, high) in enumerate(estimates)
    ]
    floor = TOP + ROW * len(rows) - 8
    ticks = [first + step * i for i in range(round((last - first) / step) + 1)]
    said = "; ".join(
        f"{label} {share:.4f} ({low:.4f} to {high:.4f})" for label, share, low, high in estimates
    )
    limits = "".join(f"; {name} {value:g}" for name, value in thresholds)
    return IntervalChart(
        height=floor + 30,
        floor=floor,
        rows=rows,
        ticks=[Mark(place(t), f"{t:.2f}") for t in ticks],
        lines=[Mark(place(value), name) for name, value in thresholds],
        summary=f"{said}{limits}.",
    )


@dataclass(frozen=True)
class PathChart:
    """The running accuracy as a line inside the band of its interval, with lines for thresholds."""

    band: str
    line: str
    shares: list[Mark]
    counts: list[Mark]
    lines: list[Mark]
    summary: str


PathPoint = tuple[int, float, float, float]
"""Answered questions, share right, low, high."""


def path_chart(points: list[PathPoint], thresholds: list[tuple[str, float]]) -> PathChart | None:
    """Lay out the running accuracy from 0 to 1 against answered questions; None for fewer than two points."""
    points = sorted(points)
    if len(points) < 2 or points[0][0] < 1:
        return None
    most = points[-1][0]

    def x(n: float) -> str:
        return f"{44 + (WIDTH - 44 - 12) * n / most:.1f}"

    def y(share: float) -> str:
        return f"{FLOOR - (FLOOR - CEILING) * min(1.0, max(0.0, share)):.1f}"

    upper = [f"{x(n)} {y(high)}" for n, _, _, high in points]
    lower = [f"{x(n)} {y(low)}" for n, _, low, _ in reversed(points)]
    step = _round_width(most / 5)
    first, last = points[0], points[-1]
    middle = points[len(points) // 2]
    said = "; ".join(
        f"{share:.3f} ({low:.3f} to {high:.3f}) after {count(n)}"
        for n, share, low, high in (first, middle, last)
    )
    return PathChart(
        band=f"M{'L'.join([*upper, *lower])}z",
        line=f"M{'L'.join(f'{x(n)} {y(share)}' for n, share, _, _ in points)}",
        shares=[Mark(y(share), f"{share:g}") for share in (0.0, 0.5, 1.0)],
        counts=[Mark(x(step * i), count(round(step * i))) for i in range(int(most / step) + 1)],
        lines=[Mark(y(value), name) for name, value in thresholds],
        summary=f"{said}.",
    )


@dataclass(frozen=True)
class Bin:
    """One bin: the right answers at the bottom, the others on top of them."""

    x: str
    width: str
    right_y: str
    right_height: str
    other_y: str
    other_height: str
    label: str
    right: int
    other: int


@dataclass(frozen=True)
class CountChart:
    """A histogram of one figure over all answers."""

    title: str
    bins: list[Bin]
    ticks: list[Mark]
    most: int
    summary: str


def count_chart(title: str, unit: str, right: list[float], other: list[float]) -> CountChart | None:
    """Lay out a histogram with right answers and others; None without figures."""
    values = sorted([*right, *other])
    if not values:
        return None
    low, high = values[0], values[-1]
    width = _round_width((high - low) / BINS)
    start = math.floor(low / width) * width
    bins = min(BINS + 2, int((high - start) / width) + 1)
    counts = [[0, 0] for _ in range(bins)]
    for kind, figures in enumerate((right, other)):
        for value in figures:
            counts[min(bins - 1, int((value - start) / width))][kind] += 1
    most = max(a + b for a, b in counts)
    bar = (WIDTH - 44 - 12) / bins

    def height(number: int) -> float:
        return (FLOOR - CEILING) * number / most

    drawn = []
    for i, (a, b) in enumerate(counts):
        x, y = 44 + bar * i, FLOOR - height(a)
        label = f"{_figure(start + width * i)} to {_figure(start + width * (i + 1))} {unit}"
        drawn.append(
            Bin(
                x=f"{x:.1f}",
                width=f"{max(bar - 1, 0.5):.1f}",
                right_y=f"{y:.1f}",
                right_height=f"{height(a):.1f}",
                other_y=f"{y - height(b):.1f}",
                other_height=f"{height(b):.1f}",
                label=label,
                right=a,
                other=b,
            )
        )
    every = max(1, math.ceil(bins / 6))
    ticks = [Mark(f"{44 + bar * i:.1f}", _figure(start + width * i)) for i in range(0, bins, every)]
    middle, tail = values[len(values) // 2], values[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)]
    summary = f"{count(len(values))} answers: median {_figure(middle)} {unit}, 95 % within {_figure(tail)}, most {_figure(high)}."
    return CountChart(title, drawn, ticks, most, summary)


def _round_width(width: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten, so that bins have readable ends."""
    if width <= 0 or not math.isfinite(width):
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= width * 0.999)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""Geometry of the charts of many runs: one value a run with its interval, marks where versions changed, a small trend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.text import clip_plain, count, duration, ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.records.history import HistoryPoint, Line, Series

WIDTH, HEIGHT = 400, 170
LEFT, RIGHT, TOP, FLOOR = 52, 10, 18, 138
SMALL_WIDTH, SMALL_HEIGHT = 220, 40
MOST_COLUMNS = 100
"""Columns of a chart. With more runs each column stands for several, and shows the worst of them."""
LOWEST = -24.0
"""Ratios at and below 2^LOWEST, exact hits among them, lie on the floor."""


@dataclass(frozen=True)
class Dot:
    """One value, or the worst of several runs; `label` says which."""

    x: str
    y: str
    bad: bool
    label: str


@dataclass(frozen=True)
class Tick:
    """A label on an axis."""

    at: str
    label: str


@dataclass(frozen=True)
class TrendChart:
    """A figure over the runs. `path` joins the values, `whiskers` are the intervals, `limit_at` is where the bound lies."""

    title: str
    path: str
    whiskers: str
    dots: list[Dot]
    ticks: list[Tick]
    marks: list[Tick]
    limit_at: str
    first: str
    last: str
    summary: str


def shown_value(kind: str, value: float) -> str:
    """Return a value of a series for people."""
    if kind == "duration":
        return duration(value)
    return ratio(value) if kind == "margin" else f"{100 * value:.2f} %"


def trend_chart(line: Line, series: Series, names: list[str], *, small: bool = False) -> TrendChart | None:
    """Lay out one series of a line.

    Args:
        line: whose marks are drawn.
        series: with points in the order of the runs.
        names: of every run, for labels: its date.
        small: a trend for the cell of a table, without axes.

    Returns:
        None without a finite value.
    """
    points = [p for p in series.points if math.isfinite(p.value)]
    if not points:
        return None
    kept = _worst_of_columns(points, series.kind)
    low, high = _span(kept, series.kind)
    left, right = (2, SMALL_WIDTH - 4) if small else (LEFT, WIDTH - RIGHT)
    top, floor = (4, SMALL_HEIGHT - 4) if small else (TOP, FLOOR)

    def across(place: float) -> float:
        return left + (right - left) * (place + 0.5) / len(kept)

    def up(value: float) -> float:
        share = (_scaled(value, series.kind) - low) / (high - low)
        return floor - (floor - top) * min(1.0, max(0.0, share))

    places = [(across(i), up(p.value)) for i, (p, _) in enumerate(kept)]
    shown = [p.run for p, _ in kept]
    dots = [
        Dot(f"{x:.1f}", f"{y:.1f}", p.bad, _label(series.kind, p, runs, names))
        for (x, y), (p, runs) in zip(places, kept, strict=True)
        if p.bad or not small
    ]
    limit = up(1.0) if series.kind == "margin" and low <= 0.0 <= high else None
    values = [p.value for p in points]
    return TrendChart(
        title=clip_plain(series.subject, 80),
        path="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places),
        whiskers="".join(
            f"M{x:.1f} {up(p.low):.1f}V{up(p.high):.1f}"
            for (x, _), (p, _) in zip(places, kept, strict=True)
            if p.low is not None and p.high is not None
        ),
        dots=dots,
        ticks=[] if small else _ticks(low, high, series.kind, up),
        marks=_marks(line, shown, lambda place: across(place - 0.5)),
        limit_at="" if limit is None else f"{limit:.1f}",
        first=names[points[0].run],
        last=names[points[-1].run],
        summary=(
            f"{count(len(points))} runs: newest {shown_value(series.kind, values[-1])}, "
            f"lowest {shown_value(series.kind, min(values))}, highest {shown_value(series.kind, max(values))}"
            + (f"; {count(bad)} FAIL" if (bad := sum(p.bad for p in points)) else "")
            + "."
        ),
    )


def _marks(line: Line, shown: list[int], at: Callable[[float], float]) -> list[Tick]:
    """Return the line's marks, each left of the first column with the new versions; those of one place as one: "3-5"."""
    places: dict[int, list[int]] = {}
    for number, mark in enumerate(line.marks, start=1):
        place = next((i for i, run in enumerate(shown) if run >= mark.run), None)
        if place is not None:
            places.setdefault(place, []).append(number)
    return [
        Tick(f"{at(place):.1f}", "-".join(dict.fromkeys([str(numbers[0]), str(numbers[-1])])))
        for place, numbers in places.items()
    ]


def _worst_of_columns(points: list[HistoryPoint], kind: str) -> list[tuple[HistoryPoint, int]]:
    """Return one point a column with the number of runs that it stands for."""
    step = math.ceil(len(points) / MOST_COLUMNS)
    columns = [points[i : i + step] for i in range(0, len(points), step)]
    choose = min if kind in {"accuracy", "score"} else max
    return [(choose(column, key=lambda p: p.value), len(column)) for column in columns]


def _label(kind: str, point: HistoryPoint, runs: int, names: list[str]) -> str:
    interval = (
        f" ({shown_value(kind, point.low)} to {shown_value(kind, point.high)})"
        if point.low is not None and point.high is not None
        else ""
    )
    of = f", worst of {runs} runs" if runs > 1 else ""
    return (
        f"{names[point.run]}: {shown_value(kind, point.value)}{interval}{', FAIL' if point.bad else ''}{of}"
    )


def _scaled(value: float, kind: str) -> float:
    if kind != "margin":
        return value
    return max(LOWEST, math.log2(value)) if value > 0 else LOWEST


def _span(kept: list[tuple[HistoryPoint, int]], kind: str) -> tuple[float, float]:
    """Return the ends of the axis: what values and intervals span, from 0 for durations, with the bound for margins."""
    values = [p.value for p, _ in kept]
    if kind == "duration":
        return 0.0, max(values) * 1.05 or 1.0
    if kind == "margin":
        scaled = [_scaled(v, kind) for v in values]
        return min(*scaled, -1.0) - 0.5, max(*scaled, 0.0) + 0.5
    ends = values + [end for p, _ in kept for end in (p.low, p.high) if end is not None]
    low, high = max(0.0, min(ends)), min(1.0, max(ends))
    pad = max(0.01, (high - low) * 0.05)
    return max(0.0, low - pad), min(1.0, high + pad)


def _ticks(low: float, high: float, kind: str, up: Callable[[float], float]) -> list[Tick]:
    """Return about four labelled places on the axis."""
    if kind == "margin":
        step = max(1, math.ceil((high - low) / 4))
        exponents = range(math.ceil(low), math.floor(high) + 1)
        return [Tick(f"{up(2.0**e):.1f}", ratio(2.0**e)) for e in exponents if e % step == 0]
    step_size = _round_step((high - low) / 4)
    first = math.ceil(low / step_size - 1e-9)
    values = [n * step_size for n in range(first, math.floor(high / step_size + 1e-9) + 1)]
    words = [f"{v:g} s" if kind == "duration" else f"{100 * v:g} %" for v in values]
    return [Tick(f"{up(v):.1f}", word) for v, word in zip(values, words, strict=True)]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * n for n in (1.0, 2.0, 5.0, 10.0) if power * n >= step * 0.999)

"""Geometry of the two charts of errors. Everything that the templates place is computed here, as numbers and strings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.text import clip_plain, count, power_of_two, ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.records.record import Heatmap, Histogram

# Charts are drawn this wide and scaled down only: letters stay readable on a narrow screen.
WIDTH = 400
HEIGHT = 190
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 22, 40
EXACT_GAP = 5
"""Space after the first bar: it holds exact hits and everything tiny, so it is a category and no interval."""

LEVELS = 5
HEAT_ROWS, HEAT_COLUMNS = 32, 64
CELLS_LISTED = 5


@dataclass(frozen=True)
class Bar:
    """One bin of a histogram."""

    x: str
    y: str
    width: str
    height: str
    label: str
    count: int
    style: str


@dataclass(frozen=True)
class Tick:
    """A label on an axis, with its place along that axis."""

    at: str
    label: str


@dataclass(frozen=True)
class Worst:
    """The element with the largest error over bound: its place on the axis, the ratio, and which element it is."""

    at: str
    ratio: str
    where: str


@dataclass(frozen=True)
class HistogramChart:
    """A histogram of log2(error / bound), counts on a log10 axis so that one illegal element among millions is seen."""

    bars: list[Bar]
    ratios: list[Tick]
    decades: list[Tick]
    bound_at: str
    worst: Worst | None
    total: int
    above: int
    summary: str


def histogram_chart(histogram: Histogram) -> HistogramChart | None:
    """Lay out a histogram; None if edges and counts do not belong together."""
    edges, counts = histogram.edges, [max(0, c) for c in histogram.counts]
    if len(counts) != len(edges) + 1 or not all(map(math.isfinite, edges)) or edges != sorted(edges):
        return None
    bar = (WIDTH - LEFT - RIGHT - EXACT_GAP) / len(counts)
    floor = HEIGHT - BOTTOM
    decades = max(1, math.ceil(math.log10(max([1, *counts]))))

    def height(number: int) -> float:
        # Half a decade below 1 keeps a single element visible.
        return (floor - TOP) * (math.log10(number) + 0.5) / (decades + 0.5) if number else 0.0

    def edge_at(index: float) -> float:
        return LEFT + EXACT_GAP + bar * (index + 1)

    bars = [
        Bar(
            x=f"{LEFT if i == 0 else edge_at(i - 1):.2f}",
            y=f"{floor - height(number):.2f}",
            width=f"{max(bar - 1, 0.5):.2f}",
            height=f"{height(number):.2f}",
            label=bin_name(edges, i),
            count=number,
            style="exact" if i == 0 else "above" if edges[i - 1] >= 0 else "below",
        )
        for i, number in enumerate(counts)
    ]
    above = sum(b.count for b in bars if b.style == "above")
    return HistogramChart(
        bars=bars,
        ratios=[Tick(f"{edge_at(i):.2f}", power_of_two(edges[i])) for i in _labelled(edges)],
        decades=[
            Tick(f"{floor - height(10**d):.2f}", _short(d)) for d in range(0, decades + 1, 1 + decades // 5)
        ],
        bound_at=_bound_at(edges, edge_at),
        worst=_worst(histogram, edge_at),
        total=sum(counts),
        above=above,
        summary=_summary(bars, above),
    )


def _worst(histogram: Histogram, edge_at: Callable[[float], float]) -> Worst | None:
    """Return the mark of the worst element; beyond the axis it stands in the last bin, an exact one in the first."""
    if histogram.worst is None or math.isnan(histogram.worst):
        return None
    edges = histogram.edges
    log = (
        math.log2(histogram.worst)
        if 0 < histogram.worst < math.inf
        else math.copysign(math.inf, histogram.worst - 1)
    )
    last = len(edges) - 1
    if not edges or log <= edges[0]:
        index = -0.5
    elif log >= edges[last]:
        index = last + 0.5
    else:
        i = next(i for i in range(last) if edges[i] <= log < edges[i + 1])
        index = i + (log - edges[i]) / (edges[i + 1] - edges[i])
    return Worst(f"{edge_at(index):.2f}", ratio(histogram.worst), clip_plain(histogram.worst_at, 300))


def bin_name(edges: list[float], index: int) -> str:
    """Return what a bin holds, in words."""
    if not edges:
        return "exact"
    if index == 0:
        return f"exact, or below {power_of_two(edges[0])}"
    if index == len(edges):
        return f"{power_of_two(edges[-1])} and more"
    return f"{power_of_two(edges[index - 1])} to {power_of_two(edges[index])}"


def _labelled(edges: list[float]) -> list[int]:
    """Return the edges that get a label: few enough to be read, and the bound among them."""
    step = max(1, math.ceil(len(edges) / 7))
    start = (edges.index(0) if 0 in edges else 0) % step
    return list(range(start, len(edges), step))


def _bound_at(edges: list[float], edge_at: Callable[[float], float]) -> str:
    """Return where ratio 1 lies on the axis, "" if outside of it."""
    for i, edge in enumerate(edges):
        if edge == 0:
            return f"{edge_at(i):.2f}"
        if i and edges[i - 1] < 0 < edge:
            return f"{edge_at(i - 1 - edges[i - 1] / (edge - edges[i - 1])):.2f}"
    return ""


def _short(decade: int) -> str:
    """Return 10^decade in at most four characters or so: 1, 10, 100, 1 k, 10 k, 1 M."""
    if decade >= 12:
        return f"1e{decade}"
    return f"{10 ** (decade % 3)} {('', 'k', 'M', 'G')[decade // 3]}".strip()


def _summary(bars: list[Bar], above: int) -> str:
    """Return what a listener needs instead of the picture."""
    filled = [bar for bar in bars if bar.count]
    if not filled:
        return "Nothing was counted."
    over = f"{count(above)} elements at or above the bound" if above else "none at or above the bound"
    return f"{count(sum(b.count for b in bars))} elements, {over}; highest bin with elements: {filled[-1].label}."


@dataclass(frozen=True)
class HeatChart:
    """Where the illegal elements of a failure sit. `levels` holds one SVG path for each strength, weakest first."""

    shape: tuple[int, int]
    width: int
    height: int
    left: int
    top: int
    grid_width: int
    grid_height: int
    levels: list[str]
    rows: list[Tick]
    columns: list[Tick]
    row_label: str
    column_label: str
    most: int
    total: int
    listed: list[tuple[str, int]]
    summary: str
    folded: bool


def heat_chart(heatmap: Heatmap) -> HeatChart | None:
    """Lay out a heat map, neighbours added up where there are too many cells to be seen; None if it has no cells."""
    counts = [[max(0, c) for c in row] for row in heatmap.counts]
    if (
        not counts
        or len(counts) != len(heatmap.rows)
        or any(len(row) != len(heatmap.columns) for row in counts)
    ):
        return None
    if not heatmap.columns:
        return None
    rows, row_step = _fold_labels(heatmap.rows, HEAT_ROWS)
    columns, column_step = _fold_labels(heatmap.columns, HEAT_COLUMNS)
    cells = [[0] * len(columns) for _ in rows]
    for r, row in enumerate(counts):
        for c, number in enumerate(row):
            cells[r // row_step][c // column_step] += number
    most = max(max(row) for row in cells)
    size = max(5, min(20, 320 // len(columns)))
    left = 12 + 7 * max(len(label) for label in rows)
    hits = [(n, r, c) for r, row in enumerate(cells) for c, n in enumerate(row) if n]
    row_label, column_label = clip_plain(heatmap.row_label, 20), clip_plain(heatmap.column_label, 20)
    top_hits = sorted(hits, key=lambda hit: (-hit[0], hit[1], hit[2]))[:CELLS_LISTED]
    # Five of many cells that hold the same would say that these are special.
    alike = len(hits) > CELLS_LISTED and min(hits)[0] == most
    listed = [(f"{row_label} {rows[r]}, {column_label} {columns[c]}", n) for n, r, c in top_hits]
    total = sum(n for n, _, _ in hits)
    return HeatChart(
        shape=(len(rows), len(columns)),
        width=max(left + size * len(columns) + 16, 200),
        height=22 + size * len(rows) + 34,
        left=left,
        top=22,
        grid_width=size * len(columns),
        grid_height=size * len(rows),
        levels=[
            "".join(
                f"M{left + c * size} {22 + r * size}h{size - 1}v{size - 1}h-{size - 1}z"
                for n, r, c in hits
                if colour_level(n, most) == level
            )
            for level in range(LEVELS)
        ],
        rows=[Tick(str(22 + i * size + size // 2 + 4), rows[i]) for i in _spaced(len(rows), 14, size)],
        columns=[
            Tick(str(left + i * size + size // 2), columns[i])
            for i in _spaced(len(columns), 12 + 7 * max(len(label) for label in columns), size)
        ],
        row_label=row_label,
        column_label=column_label,
        most=most,
        total=total,
        listed=[] if alike else listed,
        summary=(
            f"{count(total)} illegal elements in {count(len(hits))} of {count(len(rows) * len(columns))} cells"
            + (f", {count(most)} in each" if alike else "")
        ),
        folded=row_step > 1 or column_step > 1,
    )


def colour_level(number: int, most: int) -> int:
    """Return the strength of a cell on a log scale: 0 for one element, LEVELS - 1 for the most."""
    if most <= 1:
        return LEVELS - 1
    return round((LEVELS - 1) * math.log(number) / math.log(most))


def _fold_labels(labels: list[str], limit: int) -> tuple[list[str], int]:
    """Return at most `limit` labels, each for a run of neighbours, and the length of a run."""
    step = math.ceil(len(labels) / limit)
    short = [clip_plain(label, 12) for label in labels]
    if step == 1:
        return short, 1
    runs = [short[i : i + step] for i in range(0, len(short), step)]
    return [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs], step


def _spaced(number: int, needed: int, size: int) -> range:
    """Return which cells get a label so that labels of `needed` pixels do not touch."""
    return range(0, number, max(1, math.ceil(needed / size)))

"""Geometry of a replay's charts: one for each stage of a layer, its relative error over the layers, worst call of each."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.text import clip_plain, count

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.records.parts.replay import ReplayedCall

WIDTH, HEIGHT = 400, 170
LEFT, RIGHT, TOP, FLOOR = 52, 12, 18, 134
LOWEST, HIGHEST = -8, 4
"""Exponents of ten that the axis holds at most: an exact result lies on the floor, one without a finite error at the top."""
MOST_LAYERS = 200
MOST_CHARTS = 12


@dataclass(frozen=True)
class Mark:
    """A layer's worst call; `anchor` is where its failure stands on the page, "" for a legal one."""

    x: str
    y: str
    anchor: str
    label: str


@dataclass(frozen=True)
class Tick:
    """A label on an axis."""

    at: str
    label: str


@dataclass(frozen=True)
class ErrorChart:
    """One stage. `path` joins the layers."""

    title: str
    path: str
    marks: list[Mark]
    ticks: list[Tick]
    layers: list[Tick]
    summary: str


def error_charts(
    calls: list[ReplayedCall], anchors: dict[int, str], value_of: Callable[[ReplayedCall], float | None]
) -> list[ErrorChart]:
    """Lay out one chart for each stage of a layer that has values.

    Args:
        calls: of every rank, in the order in which they ended.
        anchors: id of an illegal call -> where it stands on the page.
        value_of: the figure that is drawn; None for a call that has none.
    """
    stages: dict[str, list[ReplayedCall]] = {}
    for call, name in zip(calls, _names(calls), strict=True):
        if name and (value_of(call) is not None or id(call) in anchors):
            stages.setdefault(name, []).append(call)
    return [
        _chart(name, found, anchors, value_of)
        for name, found in list(stages.items())[:MOST_CHARTS]
        if any(value_of(call) is not None for call in found)
    ]


def _names(calls: list[ReplayedCall]) -> list[str]:
    """Return each call's stage, numbered where its layer makes it again ("masked_grouped_gemm, call 2"); "" without a layer."""
    seen: Counter[tuple[int, int | None, str]] = Counter()
    names = []
    for call in calls:
        if call.layer is None or call.by:
            names.append("")
            continue
        seen[key := (call.rank, call.parent, call.stage)] += 1
        again = call.parent is not None and seen[key] > 1
        names.append(f"{call.stage}, call {seen[key]}" if again else call.stage)
    return names


def _chart(
    name: str,
    calls: list[ReplayedCall],
    anchors: dict[int, str],
    value_of: Callable[[ReplayedCall], float | None],
) -> ErrorChart:
    worst: dict[int, ReplayedCall] = {}
    for call in calls:
        layer = call.layer or 0
        if layer not in worst or _badness(call, anchors, value_of) > _badness(
            worst[layer], anchors, value_of
        ):
            worst[layer] = call
    layers = sorted(worst)[:MOST_LAYERS]
    heights = {layer: _exponent(value_of(worst[layer])) for layer in layers}
    low, high = math.floor(min(heights.values())), math.ceil(max(heights.values()))
    if low == high:
        low, high = (low if low == LOWEST else low - 1), high + 1

    def across(layer: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (layers.index(layer) + 0.5) / len(layers)

    def up(exponent: float) -> float:
        return FLOOR - (FLOOR - TOP) * (exponent - low) / (high - low)

    places = [(across(layer), up(heights[layer])) for layer in layers]
    bad = [layer for layer in layers if id(worst[layer]) in anchors]
    values = [v for layer in layers if (v := value_of(worst[layer])) is not None]
    step, down = max(1, math.ceil(len(layers) / 8)), max(1, math.ceil((high - low) / 4))
    return ErrorChart(
        title=clip_plain(name, 60),
        path="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places),
        marks=[
            Mark(f"{x:.1f}", f"{y:.1f}", anchors.get(id(worst[layer]), ""), _label(worst[layer], value_of))
            for layer, (x, y) in zip(layers, places, strict=True)
        ],
        ticks=[Tick(f"{up(e):.1f}", _power(e)) for e in range(low, high + 1, down)],
        layers=[Tick(f"{across(layer):.1f}", str(layer)) for layer in layers[::step]],
        summary=(
            f"{count(len(layers))} layers, {min(values):.2e} to {max(values):.2e}"
            + (f"; illegal in {count(len(bad))}, first in layer {bad[0]}" if bad else "")
            + "."
        ),
    )


def _badness(
    call: ReplayedCall, anchors: dict[int, str], value_of: Callable[[ReplayedCall], float | None]
) -> tuple[bool, float]:
    return id(call) in anchors, _exponent(value_of(call))


def _exponent(value: float | None) -> float:
    if value is None:
        return HIGHEST
    return min(HIGHEST, max(LOWEST, math.log10(value))) if value > 0 else LOWEST


def _power(exponent: int) -> str:
    if exponent == LOWEST:
        return "0"
    return f"{100 * 10**exponent:g} %" if -3 <= exponent <= 1 else f"1e{exponent}"


def _label(call: ReplayedCall, value_of: Callable[[ReplayedCall], float | None]) -> str:
    value = value_of(call)
    return clip_plain(
        f"{call.place}: {'not finite' if value is None else f'{value:.2e}'}, {call.verdict}", 200
    )

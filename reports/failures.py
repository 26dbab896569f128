"""Each failure with its message, place, extent, heat map, diagnosis and the command that repeats it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.charts import HeatChart, heat_chart
from reports.template import fill
from reports.view import failure_groups

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.record import Failure, RunRecord

OPEN_AT_FIRST = 2
"""Failures of a rule that are unfolded when the page opens; more of the same would push the next rule out of sight."""

KINDS = {
    "illegal": "illegal element",
    "crash": "candidate crashed",
    "timeout": "time limit reached",
    "rejected": "input rejected",
    "no-trap": "trap not drawn",
    "known": "known failure",
}


@dataclass(frozen=True)
class Shown:
    """One failure ready to be drawn."""

    failure: Failure
    kind: str
    place: str
    chart: HeatChart | None
    is_open: bool


def section(record: RunRecord) -> Markup | None:
    """Draw the failures rule by rule, or nothing."""
    groups = failure_groups(record)
    if not groups:
        return None
    return fill(
        "failures.html.j2",
        groups=[
            (group, [_shown(failure, number < OPEN_AT_FIRST) for number, failure in enumerate(group.shown)])
            for group in groups
        ],
    )


def _shown(failure: Failure, is_first: bool) -> Shown:
    # Indices are written without separators: they are typed into a debugger, not read as amounts.
    place = ", ".join(f"{name} {index}" for name, index in failure.place.items())
    chart = heat_chart(failure.heatmap) if failure.heatmap else None
    return Shown(
        failure, KINDS.get(failure.kind, failure.kind), place, chart, is_first and failure.kind != "known"
    )

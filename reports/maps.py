"""Where a failure's illegal elements sit: a picture, or words where the picture would be one block of one colour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reports.charts import HeatChart, colour_level, heat_chart
from reports.text import clip_plain, count

if TYPE_CHECKING:
    from harness.records.record import Failure, Heatmap

MOST_MAPS = 6
MOST_RUNS = 3
"""Runs of neighbours that words name along one axis; a pattern of more is a picture."""


@dataclass(frozen=True)
class Map:
    """One view of the illegal elements: `chart`, or `words` where they say all of it. `title`: of what.

    `is_whole`: no cell is without an illegal element.
    """

    words: str
    chart: HeatChart | None
    title: str = ""
    is_whole: bool = False


@dataclass(frozen=True)
class Maps:
    """The views of one failure: `own` of the problem in its message, `others` of `other`, a larger one that failed too."""

    own: list[Map] = field(default_factory=list)
    other: str = ""
    others: list[Map] = field(default_factory=list)


def maps_of(failure: Failure) -> Maps:
    """Return what there is to see of a failure, views that hold nothing left out."""
    own: list[Map] = []
    others: list[Map] = []
    other = ""
    for heatmap in [*([failure.heatmap] if failure.heatmap else []), *failure.heatmaps][:MOST_MAPS]:
        # What is of another problem names it at the end of its title (harness/running/failure.py).
        title, of, problem = heatmap.title.rpartition(" of ")
        is_other = bool(of) and problem != failure.problem
        drawn = _map(
            heatmap, title if of else heatmap.title, whole_rows=not is_other and _whole_rows(failure)
        )
        if drawn is None:
            continue
        (others if is_other else own).append(drawn)
        other = problem if is_other else other
    return Maps(_telling(own), other, _telling(others))


def _telling(maps: list[Map]) -> list[Map]:
    """Leave out what says nothing beside the others: everything of the one expert that is wrong; a line of cells."""
    told = [one for number, one in enumerate(maps) if not (number and one.words and one.is_whole)]
    pictures = [one for one in told if one.chart is None or min(one.chart.shape) > 1]
    return pictures or told[:1]


def _whole_rows(failure: Failure) -> bool:
    """Return whether every row with an illegal element is illegal from end to end."""
    elements, rows, columns = (failure.extent.get(name) for name in ("elements", "rows", "of_columns"))
    return isinstance(rows, int) and isinstance(columns, int) and elements == rows * columns


def _map(heatmap: Heatmap, title: str, *, whole_rows: bool) -> Map | None:
    chart = heat_chart(heatmap)
    if chart is None or not chart.total:
        return None
    words = area_words(heatmap, whole_rows=whole_rows)
    is_whole = all(number > 0 for row in heatmap.counts for number in row)
    return Map(words, None if words else chart, clip_plain(title, 120), is_whole)


def area_words(heatmap: Heatmap, *, whole_rows: bool) -> str:
    """Return which cells are illegal where they are one block of one colour: "all of expert 3"; "" for a picture.

    Args:
        heatmap: counts by cell.
        whole_rows: rows with an illegal element are known to be illegal from end to end.
    """
    hits = {(r, c): n for r, row in enumerate(heatmap.counts) for c, n in enumerate(row) if n > 0}
    rows, columns = sorted({r for r, _ in hits}), sorted({c for _, c in hits})
    most = max(hits.values(), default=0)
    if len(hits) != len(rows) * len(columns) or len({colour_level(n, most) for n in hits.values()}) != 1:
        return ""
    across, down = clip_plain(heatmap.column_label, 20), clip_plain(heatmap.row_label, 20)
    all_rows, all_columns = len(rows) == len(heatmap.rows), len(columns) == len(heatmap.columns)
    if all_rows and all_columns and len(hits) > 1:
        return f"every {down} and {across}"
    named = [_named(down, heatmap.rows, rows), _named(across, heatmap.columns, columns)]
    if "" in named:
        return ""
    if all_columns:
        return f"all of {named[0]}" if whole_rows else f"every {across} of {named[0]}"
    return f"{named[1]} of every {down}" if all_rows else ", ".join(named)


def _named(axis: str, labels: list[str], chosen: list[int]) -> str:
    """Return "expert 3", "experts 0 to 2, 7"; "" where these are too many runs to be read."""
    runs: list[list[int]] = []
    for index in chosen:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    if len(runs) > MOST_RUNS:
        return ""
    ends = [[clip_plain(labels[i], 12) for i in dict.fromkeys(run)] for run in runs]
    many = "s" if len(chosen) > 1 and axis.isalpha() else ""
    return f"{axis}{many} {', '.join(' to '.join(run) for run in ends)}"


def element_words(failure: Failure) -> str:
    """Return how many elements are illegal: "32 of 32 elements"; "" where the failure does not say."""
    elements, of = failure.extent.get("elements"), failure.extent.get("of")
    if not isinstance(elements, int) or not isinstance(of, int):
        return ""
    return f"{count(elements)} of {count(of)} elements"

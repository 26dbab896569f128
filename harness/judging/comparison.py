"""One judged comparison: what was compared, what was illegal and where, and whether the comparison had power.

A comparison has power on its data when it would have rejected zeros, x0.5, a row-rolled copy of the same output, and the
output with one single element zeroed (criteria that count or average elements let that pass).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor

from harness.judging.compared import Compared
from harness.problems.rows import Rows
from harness.records.record import Heatmap, Histogram

# log2 of error / bound: everything below 2^-8 is one bin, everything past 2^8 another, finer around the bound.
HISTOGRAM_EDGES = [-8.0, -6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
_HEATMAP_BANDS = 32  # cells along rows and columns
_HEATMAP_EXPERTS = 64
_SCALED = 16  # columns that one NVFP4 block scale covers


@dataclass
class Comparison(Compared):
    """The result of one comparison, with the rows that were compared, None where it is not about rows of experts."""

    rows: Rows | None = field(default=None, repr=False)

    def plain(self) -> Compared:
        """Return it without the rows."""
        return Compared(**{each.name: getattr(self, each.name) for each in fields(Compared)})


_SOME_ROWS = 8
Accepts = Callable[[Tensor, slice], Tensor]
Altered = Callable[[slice], Tensor]
"""Which rows -> those of an altered copy: a few of them settle nearly every question, and the others are never made."""


def roll_rows(values: Tensor, part: slice = slice(None)) -> Tensor:
    """Return some rows of a copy rolled by one row, or along the columns where there is only one row."""
    if len(values) < 2:
        return values.roll(1, -1)[part]
    return values[torch.arange(len(values), device=values.device).roll(1)[part]]


def accepted(accepts: Accepts, altered: Altered, rows: int) -> bool:
    """Return whether every element of an altered copy would be accepted.

    Rows from all over the output are asked first, always the same ones: one element that is rejected settles it. Only where
    all of them would be accepted are all rows asked, so that a few rows never make a comparison powerless.

    Args:
        accepts: legal elements of some rows of the output, given their values and which rows they are.
        altered: the altered copy.
        rows: of the output.
    """
    return all(bool(accepts(altered(part), part).all()) for part in _some_then_all(rows))


def _some_then_all(rows: int) -> tuple[slice, slice]:
    return slice(None, None, max(1, rows // _SOME_ROWS)), slice(None)


def altered_copies(
    values: Tensor, accepts: Accepts, *, halved: Altered | None = None
) -> dict[str, Callable[[], bool]]:
    """Return the copies that every comparison must reject, each as a function that says whether it would be accepted.

    Args:
        values: `(rows, columns)`, the output.
        accepts: legal elements of some rows of an output, given their values and which rows they are.
        halved: the copy x0.5 where half of each value is something else than `half(values)`.
    """
    copies: dict[str, Altered] = {
        "zeros": lambda part: torch.zeros_like(values[part]),
        "x0.5": halved or (lambda part: half(values[part])),
        "rolled rows": lambda part: roll_rows(values, part),
    }
    asked = {name: partial(accepted, accepts, altered, len(values)) for name, altered in copies.items()}
    return {**asked, "one element zeroed": partial(_one_element_accepted, values, accepts)}


def _one_element_accepted(values: Tensor, accepts: Accepts) -> bool:
    """Return whether zeroing one element, of those that may not be zero, would pass.

    Where each element is judged for itself this is False by construction. Where it is True a single number is made of all
    elements (a share that must be close, a mean, a cosine), and what is wrong in a few of them goes unseen: so all are asked.
    """
    for part in _some_then_all(len(values)):
        rejected = ~accepts(torch.zeros_like(values[part]), part)
        if bool(rejected.any()):
            places = rejected.nonzero()
            row, column = places[len(places) // 2].tolist()
            altered = values.clone()
            altered[range(len(values))[part][row], column] = 0
            return bool(accepts(altered, slice(None)).all())
    return True


def compare(
    stage: str,
    legal: Tensor,
    rows: Rows,
    *,
    judged: dict[str, int],
    altered: dict[str, Callable[[], bool]],
    show: Callable[[int, int], str],
    ratio: Tensor | None = None,
) -> Comparison:
    """Build a comparison from a mask of legal elements.

    Args:
        stage: name of the output.
        legal: `(rows, columns)` bool.
        rows: where the rows come from.
        judged: elements by how they were judged; they must add up to the elements compared.
        altered: for each altered copy, a function that says whether it would be accepted in full.
        show: text for one element, given its row and column in `legal`.
        ratio: `(*)` float64, error over bound of the elements whose error is measured.
    """
    result = Comparison(
        stage,
        compared=legal.numel(),
        judged={word: count for word, count in judged.items() if count},
        rows=rows,
    )
    if not legal.numel():
        return result
    result.accepted_altered = [name for name, accepted in altered.items() if accepted()]
    if ratio is not None and ratio.numel():
        known = ratio.nan_to_num(torch.inf)  # nothing is worse than NaN, and JSON has none
        result.worst_ratio = min(float(known.max()), 1e30)
        result.histogram = _histogram(ratio)
        result.histogram.worst = result.worst_ratio
        if ratio.shape == legal.shape:
            worst = int(known.argmax())
            place = _place(rows, worst // legal.shape[1], worst % legal.shape[1])
            result.histogram.worst_at = ", ".join(f"{name} {index}" for name, index in place.items())
    bad = ~legal
    result.illegal = int(bad.sum())
    if result.illegal:
        _describe(result, bad, rows, show, ratio)
    return result


def compare_equal(
    stage: str, got: Tensor, expected: Tensor, rows: Rows, what: str, *, judged: str = "equal bit for bit"
) -> Comparison:
    """Compare two outputs that must be equal bit for bit, NaN to NaN.

    Args:
        stage: name of the output.
        got: `(rows, columns)`.
        expected: the same shape and dtype.
        rows: where the rows come from.
        what: what the two outputs differ in, for the message ("padding rows hold NaN instead of zeros").
        judged: how, for the record.
    """

    def same(other: Tensor, rows: slice = slice(None)) -> Tensor:
        return (other == expected[rows]) | (other.isnan() & expected[rows].isnan())

    return compare(
        stage,
        same(got),
        rows,
        judged={judged: got.numel()},
        altered=altered_copies(expected, same),
        show=lambda r, c: f"= {got[r, c].item()!r}, but {expected[r, c].item()!r} without the change: {what}",
    )


def half(values: Tensor) -> Tensor:
    """Return half of each value, for integers too (bytes and codes)."""
    return values // 2 if not values.dtype.is_floating_point else values * 0.5


def _histogram(ratio: Tensor) -> Histogram:
    edges = torch.tensor(HISTOGRAM_EDGES, dtype=torch.float64, device=ratio.device).exp2()
    # A ratio of exactly 1 is legal: it falls below the edge there. NaN is worse than every edge.
    bins = torch.bucketize(ratio.double().flatten(), edges)
    return Histogram(list(HISTOGRAM_EDGES), torch.bincount(bins, minlength=len(edges) + 1).tolist())


def _describe(
    result: Comparison, bad: Tensor, rows: Rows, show: Callable[[int, int], str], ratio: Tensor | None
) -> None:
    """Fill in the worst place, the extent and the heat map of a failing comparison."""
    places = bad.nonzero()
    worst = 0
    if ratio is not None and ratio.shape == bad.shape:
        worst = int(ratio[bad].nan_to_num(torch.inf).argmax())
    r, c = places[worst].tolist()
    result.place = _place(rows, r, c)
    expert, row = int(rows.expert[r]), int(rows.row[r])
    bad_rows, columns = bad.any(1), bad.any(0)
    experts = sorted(set(rows.expert[bad_rows].tolist()))
    result.extent = {
        "elements": result.illegal,
        "of": result.compared,
        "rows": int(bad_rows.sum()),
        "of_rows": len(rows),
        "experts": experts,
        "columns": int(columns.sum()),
        "of_columns": bad.shape[1],
    }
    named = ", ".join(map(str, experts[:12])) + (", ..." if len(experts) > 12 else "")
    result.message = (
        f"{result.stage}[{rows.expert_name} {expert}, {rows.row_name} {row}, {rows.column_name} {c}] {show(r, c)}\n"
        f"  extent     {result.illegal:,} of {result.compared:,} valid elements, {int(bad_rows.sum())} of {len(rows)} "
        f"{rows.row_name}s, {int(columns.sum())} of {bad.shape[1]} columns, {rows.expert_name}s [{named}]"
    )
    result.heatmap = _by_expert_and_row(places, rows)
    result.heatmaps = [_by_row_and_column(places, rows, bad.shape[1])]


def _place(rows: Rows, row: int, column: int) -> dict[str, int]:
    """Return the expert, row and column of an element of the compared rows, by the names of the axes."""
    return {
        rows.expert_name: int(rows.expert[row]),
        rows.row_name: int(rows.row[row]),
        rows.column_name: column,
    }


def _by_expert_and_row(places: Tensor, rows: Rows) -> Heatmap:
    """Count illegal elements by expert and band of rows."""
    band, labels = _bands(rows.capacity)
    expert = rows.expert[places[:, 0]]
    counts = _count(expert, rows.row[places[:, 0]] // band, rows.experts, len(labels))
    # Those without errors show which are wrong, as long as there are few.
    shown = list(range(rows.experts))
    if rows.experts > _HEATMAP_EXPERTS:
        shown = sorted(set(expert.tolist()))[:_HEATMAP_EXPERTS]
    return Heatmap(
        [str(e) for e in shown], labels, [counts[e] for e in shown], rows.expert_name, rows.row_name
    )


def _by_row_and_column(places: Tensor, rows: Rows, columns: int) -> Heatmap:
    """Count the illegal elements of the expert that has most by row and block of columns.

    A block is a multiple of 16 columns, what one block scale covers, where there are more columns than cells.
    """
    expert = int(rows.expert[places[:, 0]].mode().values)
    here = places[rows.expert[places[:, 0]] == expert]
    block, labels = _bands(columns, 1 if columns <= _HEATMAP_BANDS else _SCALED)
    band, row_labels = _bands(int(rows.row[rows.expert == expert].max()) + 1)
    counts = _count(rows.row[here[:, 0]] // band, here[:, 1] // block, len(row_labels), len(labels))
    name = rows.column_name
    of_blocks = name if block == 1 else f"block of {block} {name}s" if name.isalpha() else f"{block} x {name}"
    return Heatmap(row_labels, labels, counts, rows.row_name, of_blocks, f"{rows.expert_name} {expert}")


def _bands(length: int, multiple: int = 1) -> tuple[int, list[str]]:
    """Return how many neighbours share a cell, a multiple of `multiple`, and the labels of the cells."""
    band = multiple * max(1, math.ceil(length / (multiple * _HEATMAP_BANDS)))
    ends = [(at, min(at + band, length) - 1) for at in range(0, length, band)]
    return band, [str(first) if first == last else f"{first}-{last}" for first, last in ends]


def _count(row: Tensor, column: Tensor, rows: int, columns: int) -> list[list[int]]:
    """Return how often each cell occurs."""
    flat = torch.bincount((row * columns + column).cpu(), minlength=rows * columns)
    counts: list[list[int]] = flat.reshape(rows, columns).tolist()
    return counts

"""Where a failure's errors sit: words for one block of one colour, pictures for patterns, each problem by itself."""

from __future__ import annotations

import re

import pytest

from harness.records.record import Failure, Heatmap
from reports import failures, summary
from reports.maps import area_words, element_words, maps_of


def grid(rows: int, columns: int, hits: dict[tuple[int, int], int]) -> Heatmap:
    labels = [[str(i) for i in range(number)] for number in (rows, columns)]
    return Heatmap(*labels, [[hits.get((r, c), 0) for c in range(columns)] for r in range(rows)])


@pytest.mark.parametrize(
    ("hits", "whole", "every"),
    [
        ({(3, c): 5 for c in range(6)}, "all of expert 3", "every row of expert 3"),
        (
            {(e, c): 5 for e in (0, 1, 3) for c in range(6)},
            "all of experts 0 to 1, 3",
            "every row of experts 0 to 1, 3",
        ),
        ({(e, 2): 1 for e in range(4)}, "row 2 of every expert", "row 2 of every expert"),
        ({(1, 2): 1, (1, 3): 1}, "expert 1, rows 2 to 3", "expert 1, rows 2 to 3"),
        ({(e, c): 9 for e in range(4) for c in range(6)}, "every expert and row", "every expert and row"),
        ({(0, 0): 1, (1, 1): 1}, "", ""),
        ({(3, c): 5 * 10**c for c in range(6)}, "", ""),
    ],
)
def test_one_block_of_one_colour_is_words(hits, whole, every):
    assert area_words(grid(4, 6, hits), whole_rows=True) == whole
    assert area_words(grid(4, 6, hits), whole_rows=False) == every


def test_a_comb_is_a_picture():
    assert area_words(grid(1, 16, {(0, c): 1 for c in range(0, 16, 2)}), whole_rows=True) == ""


def failure(**changes) -> Failure:
    fields = {"extent": {"elements": 32, "of": 64, "rows": 2, "of_columns": 16}, **changes}
    return Failure(
        "GEMM", "eager", "2x2x16x16:2,2:normal:0", "gemm", "illegal", "off", "harness check", **fields
    )


def test_only_rows_that_are_illegal_from_end_to_end_make_an_expert_wrong_as_a_whole():
    heatmap = grid(2, 2, {(1, 0): 16, (1, 1): 16})
    (own,) = maps_of(failure(heatmap=heatmap)).own
    assert (own.words, own.chart) == ("all of expert 1", None)
    fewer = {"elements": 31, "of": 64, "rows": 2, "of_columns": 16}
    (own,) = maps_of(failure(heatmap=heatmap, extent=fewer)).own
    assert own.words == "every row of expert 1"
    assert element_words(failure(extent=fewer)) == "31 of 64 elements"


def test_maps_of_another_problem_stand_under_its_name(failed):
    failing = next(rule for rule in failed.rules if rule.failures)
    pattern = grid(3, 3, {(0, 0): 1, (1, 2): 3})
    pattern.title = "gemm of v2:8x90x16x16:0,89:grid:5"
    failing.failures = [failure(heatmap=grid(1, 1, {(0, 0): 32}), heatmaps=[pattern])]
    found = maps_of(failing.failures[0])
    assert ([one.words for one in found.own], found.other) == (
        ["all of expert 0"],
        "v2:8x90x16x16:0,89:grid:5",
    )
    drawn = re.sub("<wbr>", "", str(failures.section(failed)))
    assert drawn.count("<figure") == 1
    own, _, other = drawn.partition("<h4>A larger problem that failed too</h4>")
    assert "<figure" not in own
    assert "all of expert 0" in own
    assert "Not the one of the message: <code>v2:8x90x16x16:0,89:grid:5</code>" in other
    assert "<figure" not in str(summary.header(failed)), (
        "the first screen shows the problem of its message only"
    )


def test_the_second_view_is_left_out_where_it_adds_nothing():
    whole = grid(2, 2, {(r, c): 8 for r in range(2) for c in range(2)})
    whole.title = "expert 1"
    assert len(maps_of(failure(heatmap=grid(2, 1, {(1, 0): 32}), heatmaps=[whole])).own) == 1

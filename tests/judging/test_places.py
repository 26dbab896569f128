"""Where illegal elements sit: every view counts each of them once, keeps neighbours without errors, and stays small."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from harness.judging.comparison import compare
from harness.problems.rows import Rows
from harness.records.merge import merge_rules
from harness.records.record import Histogram, RuleResult, RunRecord
from harness.verdict import Verdict


def failing(bad, rows, ratio=None):
    return compare(
        "stage", ~bad, rows, judged={"so": bad.numel()}, altered={}, show=lambda r, c: "is wrong", ratio=ratio
    )


def total(heatmap):
    return sum(map(sum, heatmap.counts))


def test_views_of_one_block_in_one_expert():
    rows = Rows.valid([3, 0, 40], 64, "cpu")
    bad = torch.zeros(43, 1024, dtype=torch.bool)
    bad[3 + 20 : 3 + 30, 512:528] = True  # expert 2, rows 20 to 29, one block of 16
    found = failing(bad, rows)
    assert found.heatmap is not None
    by_row, (by_column,) = found.heatmap, found.heatmaps
    assert total(by_row) == total(by_column) == found.illegal == 160
    assert by_row.rows == ["0", "1", "2"], "experts without errors show which one is wrong"
    assert [sum(row) for row in by_row.counts] == [0, 0, 160]
    assert (by_column.title, by_column.row_label, by_column.column_label) == (
        "expert 2",
        "row",
        "block of 32 cols",
    )
    assert [
        by_column.columns[i] for i, n in enumerate(map(sum, zip(*by_column.counts, strict=True))) if n
    ] == ["512-543"]
    labels = [by_column.rows[i] for i, row in enumerate(by_column.counts) if any(row)]
    assert labels == ["20-21", "22-23", "24-25", "26-27", "28-29"]


@pytest.mark.parametrize("columns", [1, 7, 32, 33, 512, 513, 7168])
@pytest.mark.parametrize("masked_m", [[1], [0, 5], [3] * 300])
def test_every_illegal_element_is_counted_and_the_views_stay_small(columns, masked_m):
    rows = Rows.valid(masked_m, 512, "cpu", "block")
    found = failing(torch.ones(len(rows), columns, dtype=torch.bool), rows)
    assert found.heatmap is not None
    assert total(found.heatmap) == found.illegal or len(masked_m) > 64
    (by_column,) = found.heatmaps
    assert total(by_column) == columns * max(masked_m)
    for one in (found.heatmap, by_column):
        assert len(one.counts) == len(one.rows) <= 64
        assert {len(row) for row in one.counts} == {len(one.columns)}
        assert len(one.columns) <= 32
        assert len(json.dumps(vars(one))) < 16_000


def test_the_worst_element_is_named_and_nan_is_worst():
    rows = Rows.valid([2, 1], 4, "cpu")
    ratio = torch.full((3, 4), 0.25, dtype=torch.float64)
    ratio[1, 2] = 0.75
    legal = failing(torch.zeros(3, 4, dtype=torch.bool), rows, ratio)
    assert legal.histogram is not None
    assert (legal.histogram.worst, legal.histogram.worst_at) == (0.75, "expert 0, row 1, col 2")
    ratio[2, 3] = torch.nan
    assert legal.worst_ratio == 0.75
    broken = failing(ratio.isnan(), rows, ratio)
    assert broken.histogram is not None
    assert (broken.histogram.worst, broken.histogram.worst_at) == (1e30, "expert 1, row 0, col 3")
    json.dumps(asdict(broken.plain()), allow_nan=False)


def test_merged_histograms_keep_the_worst_element():
    def one(worst, at):
        return RuleResult(
            "R", "r", "c", Verdict.PASS, examples=1, histograms={"s": Histogram([0.0], [1, 0], worst, at)}
        )

    parts = [one(0.25, "a"), one(0.5, "b"), one(None, "")]
    for order in (parts, parts[::-1]):
        (merged,) = merge_rules(order)
        found = merged.histograms["s"]
        assert (found.worst, found.worst_at, found.counts) == (0.5, "b", [3, 0])


def test_records_without_the_new_fields_still_load():
    record = RunRecord("r", "now", [])
    assert Histogram(edges=[0.0], counts=[1, 0]).worst is None
    assert json.loads(record.to_json())["schema"] == 1

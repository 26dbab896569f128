"""Geometry of the charts: every element is counted once, and nothing lies outside the drawing."""

from __future__ import annotations

import re

import pytest

from harness.records.record import Heatmap, Histogram
from reports import charts
from reports.charts import bin_name, heat_chart, histogram_chart

EDGES = [-4.0, -2.0, 0.0, 2.0]


def test_bins_are_named_and_sorted_by_the_bound():
    chart = histogram_chart(Histogram(EDGES, [50, 4, 3, 2, 1]))
    assert chart is not None
    assert [(b.label, b.count, b.style) for b in chart.bars] == [
        ("exact, or below 2⁻⁴", 50, "exact"),
        ("2⁻⁴ to 2⁻²", 4, "below"),
        ("2⁻² to 1", 3, "below"),
        ("1 to 2²", 2, "above"),
        ("2² and more", 1, "above"),
    ]
    assert (chart.total, chart.above) == (60, 3)
    assert chart.bound_at == chart.ratios[2].at, "the bound is drawn at the mark for ratio 1"
    assert chart.ratios[2].label == "1"
    assert float(chart.bars[3].x) == pytest.approx(float(chart.bound_at), abs=0.02)


@pytest.mark.parametrize("counts", [[0] * 5, [1] * 5, [10**12, 0, 0, 0, 1], [10**30, 1, 1, 1, 1]])
def test_bars_stay_inside_and_one_element_is_visible(counts):
    chart = histogram_chart(Histogram(EDGES, counts))
    assert chart is not None
    for bar in chart.bars:
        x, y, width, height = (float(v) for v in (bar.x, bar.y, bar.width, bar.height))
        assert x >= charts.LEFT
        assert x + width <= charts.WIDTH - charts.RIGHT
        assert y >= charts.TOP - 0.01
        assert y + height == pytest.approx(charts.HEIGHT - charts.BOTTOM, abs=0.02)
        assert (height >= 1) == (bar.count > 0)
    assert len(chart.decades) <= 7


def test_summary_says_what_the_picture_shows():
    chart = histogram_chart(Histogram(EDGES, [50_000, 0, 0, 0, 0]))
    assert chart is not None
    assert (
        chart.summary
        == "50,000 elements, none at or above the bound; highest bin with elements: exact, or below 2⁻⁴."
    )
    nothing = histogram_chart(Histogram(EDGES, [0] * 5))
    assert nothing is not None
    assert nothing.summary == "Nothing was counted."


@pytest.mark.parametrize("edges", [[-4.0, -2.0], [1.0, 2.0], []])
def test_no_bound_is_drawn_where_the_axis_does_not_reach_it(edges):
    chart = histogram_chart(Histogram(edges, [1] * (len(edges) + 1)))
    assert chart is not None
    assert chart.bound_at == ""


def test_bound_between_two_edges_is_interpolated():
    chart = histogram_chart(Histogram([-1.0, 1.0], [1, 1, 1]))
    assert chart is not None
    left, right = (float(tick.at) for tick in chart.ratios)
    assert float(chart.bound_at) == pytest.approx((left + right) / 2, abs=0.02)


@pytest.mark.parametrize("edges", [[0.0, 1.0], [float("nan"), 1.0], [1.0, 0.0]])
def test_edges_that_do_not_fit_give_no_chart(edges):
    assert histogram_chart(Histogram(edges, [1] * (2 if edges == [0.0, 1.0] else 3))) is None


def test_bin_without_edges_is_exact():
    assert bin_name([], 0) == "exact"


def test_heat_map_places_every_illegal_cell_once():
    chart = heat_chart(Heatmap(["0", "1"], ["0", "128", "256"], [[0, 1, 0], [1000, 0, 30]]))
    assert chart is not None
    assert sum(len(re.findall("M", path)) for path in chart.levels) == 3
    assert (chart.most, chart.total, chart.folded) == (1000, 1031, False)
    assert chart.listed == [("expert 1, row 0", 1000), ("expert 1, row 256", 30), ("expert 0, row 128", 1)]
    assert chart.levels[0].count("M") == chart.levels[-1].count("M") == 1


def test_large_heat_map_adds_neighbours_up():
    rows, columns = [str(i) for i in range(256)], [str(i) for i in range(1_000)]
    chart = heat_chart(Heatmap(rows, columns, [[1] * 1_000 for _ in range(256)]))
    assert chart is not None
    assert chart.folded
    assert chart.total == 256_000
    assert sum(len(re.findall("M", path)) for path in chart.levels) <= charts.HEAT_ROWS * charts.HEAT_COLUMNS
    assert chart.listed[0] == ("expert 0 to 7, row 0 to 15", 128)


@pytest.mark.parametrize(
    ("rows", "columns", "counts"),
    [([], [], []), (["0"], [], [[]]), (["0"], ["0"], [[1, 2]]), (["0", "1"], ["0"], [[1]])],
)
def test_heat_map_that_does_not_fit_gives_no_chart(rows, columns, counts):
    assert heat_chart(Heatmap(rows, columns, counts)) is None

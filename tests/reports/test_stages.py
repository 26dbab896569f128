"""Diagnosis, threads, canary, the running accuracy and the mark of the worst element: what they say, and hostile values."""

from __future__ import annotations

import pytest

from harness.faults.bugs import all_bugs
from harness.records.record import Heatmap, Histogram, RunRecord
from reports import canary, failures, summary
from reports.charts import heat_chart, histogram_chart
from reports.diagnosis import read
from reports.gsm8k_charts import path_chart
from reports.html import render
from reports.threads import thread

ATTACK = "</dd><script>alert(1)</script><img src=x onerror=alert(2)>\x1b\u202e\ud800\"'&<!--"
ODD = [None, 3, "x", [], {}, [None], [[]], True, float("nan"), ATTACK, [ATTACK], {ATTACK: ATTACK}]
EXPLAINED = {
    "fault": "alpha_of_expert_0",
    "title": "Every product is multiplied by expert 0's alpha",
    "category": "gemm",
    "strength": "x1.06 (measured)",
    "place": "expert 2 (gemm)",
    "evidence": "reproduces 100 % of 768 illegal elements",
    "explained": 1.0,
    "elements": 768,
    "same_as": ["alpha_of_neighbour"],
    "bugs": ["vllm#21408", "TRT-LLM#10304"],
    "where": {"gemm": {"experts": [2]}},
    "command": "harness diagnose --rule GEMM",
}


def test_every_thread_of_the_catalog_is_a_link_to_github():
    for bug in all_bugs().values():
        link = str(thread(bug.thread))
        assert link.startswith('<a href="https://github.com/'), bug.thread
        assert link.endswith(f">{bug.thread}</a>")
    assert 'href="https://github.com/vllm-project/vllm/issues/21408"' in thread("vllm#21408")


@pytest.mark.parametrize(
    "value", ["unknown#3", "vllm#", "vllm#1 x", "vllm#1\n", "B14", "javascript:alert(1)", ATTACK, 3, None]
)
def test_what_is_no_thread_stays_text(value):
    drawn = str(thread(value))
    assert "<a" not in drawn
    assert "<script" not in drawn


def with_diagnosis(record, found):
    failing = next(rule for rule in record.rules if rule.failures)
    failing.failures[0].diagnosis = found
    return record


def test_a_diagnosis_says_what_where_how_sure_and_who_else(failed):
    other = {
        **EXPLAINED,
        "title": "The next expert's alpha",
        "alternative": "explains covered elements",
        "new_field": "kept",
    }
    page = render(with_diagnosis(failed, [EXPLAINED, other]))
    for words in (
        "<strong>Every product is multiplied by expert 0&#39;s alpha</strong>",
        "x1.06 (measured)",
        "reproduces 100 % of 768 illegal elements",
        "https://github.com/NVIDIA/TensorRT-LLM/issues/10304",
        "not told apart here from <code>alpha_of_neighbour</code>",
        "1 other explanation<",
        "new_field",
        "harness diagnose --rule GEMM",
    ):
        assert words in page
    assert "masks" not in page
    header = str(summary.header(failed))
    assert "Every product is multiplied" in header
    assert "vllm-project/vllm/issues/21408" in header


def test_no_explanation_and_a_failed_diagnosis_are_said(failed):
    nothing = {
        "fault": "",
        "title": "no known fault explains it",
        "pattern": ["every 16th column"],
        "command": "c",
    }
    drawn = str(failures.section(with_diagnosis(failed, [nothing])))
    assert "no known fault explains it" in drawn
    assert "every 16th column" in drawn
    crashed = {
        "fault": "",
        "title": "the diagnosis itself failed",
        "trace": "Traceback\n  ValueError",
        "command": "c",
    }
    assert "ValueError" in str(failures.section(with_diagnosis(failed, [crashed])))
    header = str(summary.header(with_diagnosis(failed, [nothing])))
    assert "no known fault explains it" in header
    assert "every 16th column" in header


def test_what_is_weak_reads_as_weak_in_the_first_line(failed):
    found = with_diagnosis(failed, [{**EXPLAINED, "weak": "only 1 change of value"}])
    for drawn in (str(summary.header(found)), str(failures.section(found))):
        assert "perhaps: Every product is" in drawn
    assert "perhaps: " not in render(with_diagnosis(failed, [EXPLAINED]))


@pytest.mark.parametrize("value", ODD)
def test_a_diagnosis_of_any_shape_is_drawn_as_text(failed, value):
    for key in [*EXPLAINED, "pattern", "trace", "thread", "alternative", "simulated"]:
        page = render(with_diagnosis(failed, [{**EXPLAINED, key: value}]))
        assert "<script>alert" not in page
        assert "\u202e" not in page
    assert read([]) is None


LINE = {
    "name": "f", "kind": "fault", "accuracy": 0.0, "interval": [0.0, 0.1], "asked": 500, "verdict": "FAIL",
    "facts": {"title": "t", "killed_by": "GEMM", "effect": "collapse", "bugs": ["B17"], "threads": ["vllm#1"]},
}  # fmt: skip
RUN = {
    "candidate": "eager", "verdict": "PASS", "reason": "r", "reproduce": "c", "answered": 64, "correct_strict": 0,
    "accuracy_strict": 0.0, "interval": [0.0, 0.1], "seconds": {"total": 2.0}, "samples": [],
}  # fmt: skip


def canary_page(**found):
    return str(
        canary.section(
            RunRecord("r", "now", [], canary={"runs": [RUN], "controls": [], "table": [LINE], **found})
        )
    )


def test_the_canary_names_runs_that_did_not_end_as_they_must():
    assert "it did not" not in canary_page()
    assert "it did not" in canary_page(runs=[{**RUN, "verdict": "FAIL"}])
    assert "it did not" in canary_page(controls=[RUN]), "a control with a planted fault must fail"
    assert "0 of 64" in " ".join(canary_page().split()), "none right is a figure, not a gap"
    assert "https://github.com/vllm-project/vllm/issues/1" in canary_page()
    assert "B17" in canary_page(table=[{**LINE, "facts": {"bugs": ["B17"]}}])


@pytest.mark.parametrize("value", ODD)
def test_a_canary_of_any_shape_is_drawn_as_text(value):
    pages = [canary_page(**{key: value}) for key in ("runs", "controls", "table")]
    pages += [canary_page(runs=[{**RUN, key: value}]) for key in RUN]
    pages += [canary_page(table=[{**LINE, key: value}]) for key in LINE]
    pages += [canary_page(table=[{**LINE, "facts": {**LINE["facts"], key: value}}]) for key in LINE["facts"]]
    assert not [page for page in pages if "<script>" in page or "<img" in page]


def test_the_path_is_drawn_inside_its_band_and_ends_at_the_whole_run():
    chart = path_chart(
        [(1, 1.0, 0.2, 1.0), (50, 0.9, 0.8, 0.95), (100, 0.91, 0.84, 0.95)], [("minimum", 0.9)]
    )
    assert chart is not None
    assert chart.line.endswith("L388.0 22.8")
    assert chart.summary.endswith("0.910 (0.840 to 0.950) after 100.")
    assert [mark.label for mark in chart.counts] == ["0", "20", "40", "60", "80", "100"]
    assert path_chart([], []) is None
    assert path_chart([(1, 1.0, 0.2, 1.0)], []) is None


EDGES = [-2.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("worst", "between"),
    [(0.0, (None, 0)), (0.2, (None, 0)), (0.5, (0, 1)), (1.0, (1, 1)), (2.0, (1, 2)), (1e30, (2, None))],
)
def test_the_worst_element_is_marked_where_its_ratio_lies(worst, between):
    chart = histogram_chart(Histogram(EDGES, [1, 1, 1, 1], worst, "expert 2, row 0"))
    assert chart is not None
    assert chart.worst is not None
    at, marks = float(chart.worst.at), [float(tick.at) for tick in chart.ratios]
    low, high = between
    assert low is None or marks[low] - 0.02 <= at
    assert high is None or at <= marks[high] + 0.02
    assert 44 <= at <= 388
    assert chart.worst.where == "expert 2, row 0"


def test_a_histogram_without_its_worst_element_has_no_mark():
    for worst in (None, float("nan")):
        chart = histogram_chart(Histogram(EDGES, [1, 1, 1, 1], worst))
        assert chart is not None
        assert chart.worst is None


def test_cells_that_hold_the_same_are_not_listed_one_by_one():
    chart = heat_chart(Heatmap(["0"], [str(i) for i in range(9)], [[2] * 9]))
    assert chart is not None
    assert chart.listed == []
    assert chart.summary == "18 illegal elements in 9 of 9 cells, 2 in each"

"""The report as a triage page: what stands on the first screen, what is folded, what filters and links lead to."""

from __future__ import annotations

import re

import pytest

from harness.comparing.history import gather_past
from harness.records.record import Heatmap, load_record
from harness.verdict import Verdict
from reports.html import write_report
from tests.browser.pages import SIZES, height
from tests.records.kept_records import put, read

pytestmark = pytest.mark.browser

FIRST_SCREEN = {1280: 900, 400: 1800}
"""Pixels: a window, and twice what a phone shows at once."""


def top(page, selector, words=""):
    """Return where the first visible element of a kind, with these words in it, begins on the page."""
    found = page.locator(selector, has_text=words) if words else page.locator(selector)
    return found.first.bounding_box()["y"]


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_a_failing_report_answers_in_the_order_of_triage(show, record_of, tmp_path, width, scheme):
    record = record_of("neighbour")
    put(read("pass"), tmp_path / "runs", 1, repeat="PASS")
    good = load_record(tmp_path / "runs" / "day1")
    good.rules[0].rule, good.rules[0].candidate = "GEMM", record.rules[1].candidate
    good.created, good.environment.gpus = "2026-01-01T06:30:00+00:00", record.environment.gpus
    good.write(tmp_path / "runs" / "day1" / "record.json")
    path = write_report(record, tmp_path, gather_past(tmp_path / "runs", record))
    page = show(path, width=width, color_scheme=scheme).page
    failure = record.rules[1].failures[0]
    header = page.locator("header").inner_text()
    for words in (
        "GEMM on physical+alpha_of_neighbour@7, gemm, expert 1, row 0, col 3",
        "Each expert's product is multiplied by the next expert's alpha",
        "reproduces 100 % of 32 illegal elements",
        "Not told apart here from alphas_before_migration",
        "all of expert 1, 32 of 32 elements, problem v2:2x1x16x16:0,1:normal:0",
        failure.message.partition("\n")[0],
        "Since this run; last good 2026-01-01 06:30",
    ):
        assert words in header.replace("\n", " "), words
    assert page.locator("header a", has_text="vllm#34646").count() == 1
    order = [
        top(page, "h1"),
        top(page, "header p", "Look at first:"),
        top(page, ".cause"),
        top(page, "header p", "Where:"),
        top(page, ".since"),
        top(page, "header .command", failure.reproduce),
        top(page, ".coverage", "Covered"),
        top(page, ".coverage div", "Stayed free"),
    ]
    assert order == sorted(order)
    assert order[-1] < FIRST_SCREEN[width]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_picture_is_of_the_problem_in_the_message(show, record_of, width):
    record = record_of("neighbour")
    failure = record.rules[1].failures[0]
    failure.heatmap = Heatmap(["0", "1"], ["0", "1", "2"], [[1, 0, 40], [0, 3, 0]])
    failure.heatmaps = failure.heatmaps[1:]
    page = show(record, width=width).page
    assert "as the map shows, problem v2:2x1x16x16:0,1:normal:0" in page.locator("header").inner_text()
    assert page.locator("header .heat svg").bounding_box()["y"] < FIRST_SCREEN[width]
    first = page.locator("details.failure").first
    own, other = first.inner_text().split("A larger problem that failed too")
    assert "v2:8x90x144x128" not in own.rpartition("Where\n")[2], "and nothing of another one beside it"
    assert "v2:8x90x144x128" in other


def test_a_map_of_one_colour_is_words(show, record_of):
    first = show(record_of("neighbour"), width=1280).page.locator("details.failure").first
    assert "all of expert 1" in first.inner_text()
    assert "gemm: every row of expert 2" in first.inner_text()
    assert first.locator("figure").count() == 0


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_a_passing_report_is_short_and_says_what_it_did_not_see(show, record_of, width, scheme):
    page = show(record_of("quick"), width=width, color_scheme=scheme).page
    assert height(page) < (4_000 if width == 1280 else 6_000)
    words = page.locator("header .coverage").inner_text()
    for part in (
        "25 of 25 rules pass",
        "had one legal value",
        "up to experts 8",
        "had an interval",
        "GRAPH: CUDA",
    ):
        assert part in words
    assert page.locator(".coverage").bounding_box()["y"] < 300
    lines = page.locator(".rule-line")
    assert lines.count() == 27
    assert page.locator(".rule-line[open]").count() == 0
    if width == 1280:
        assert max(line.bounding_box()["height"] for line in lines.all()) < 40, "one line each"


def test_a_failing_report_opens_at_its_failures(show, record_of):
    page = show(record_of("neighbour"), width=1280).page
    assert page.locator("main > section").first.get_attribute("id") == "failures"
    opened = page.locator(".rule-line[open] .rule").all_inner_texts()
    assert opened == ["GEMM", "MOE"]


def test_the_worst_error_stands_where_an_interval_judged(show, record_of):
    page = show(record_of("quick"), width=1280).page
    page.locator(".rule-line").evaluate_all("lines => lines.forEach((line) => { line.open = true; })")
    said = {
        line.locator(".rule").inner_text()
        for line in page.locator(".rule-line", has_text="Worst error").all()
    }
    assert said == {"MOE", "ROUTE", "DISPATCH"}
    assert "of its bound" not in page.locator("header").inner_text()
    assert (
        page.locator(".rule-line", has_text="QUANT")
        .locator(".brief")
        .inner_text()
        .endswith("one value 96.4 %, a few values under 0.1 %, any value 3.6 %")
    )


def test_how_elements_were_judged_is_one_line_and_a_legend_without_tooltips(show, record_of):
    page = show(record_of("quick"), width=1280).page
    assert page.locator("main [title]").count() == 0
    assert page.locator(".legend > div").count() == 4
    phrase = "one legal code: real arithmetic"
    assert page.locator("main").inner_text().count(phrase) == 0
    page.get_by_text("in the rules' own words").click()
    assert page.locator("main").inner_text().count(phrase) == 1


@pytest.mark.parametrize("width", [1280, 400])
def test_rules_are_filtered(show, record_of, width):
    page = show(record_of("mixed"), width=width).page
    search = page.get_by_label("Filter rules")
    lines, failures = page.locator(".rule-line:visible"), page.locator("article.group:visible")
    every = lines.count()
    search.fill("gemm transposed")
    assert lines.count() == failures.count() == 1
    assert page.locator(".rule-filter output").inner_text() == "1 rule"
    search.fill("pass")
    assert 0 < lines.count() < every
    assert failures.count() == 0
    search.fill("")
    assert lines.count() == every


@pytest.mark.parametrize("width", [1280, 400])
def test_a_deep_link_unfolds_the_line_it_leads_to(show, record_of, tmp_path, width):
    path = write_report(record_of("quick"), tmp_path)
    opened = show(path, width=width)
    page = opened.page
    page.goto(f"{path.as_uri()}#rule-GEMM-eager")
    line = page.locator("#rule-GEMM-eager")
    assert line.get_attribute("open") is not None
    assert 0 <= line.bounding_box()["y"] < 300
    assert "every output is the exact result" in line.inner_text()


def test_anchors_are_the_same_in_every_report_and_never_taken_twice(show, record_of):
    record = record_of("quick")
    record.rules[1].rule, record.rules[2].rule = "A b", "A  b"
    page = show(record, width=1280).page
    ids = page.locator(".rule-line").evaluate_all("lines => lines.map((line) => line.id)")
    assert len(ids) == len(set(ids))
    assert {"rule-A-b-eager", "rule-A-b-eager-2", "rule-GEMM-eager"} <= set(ids)


def test_every_badge_that_says_fail_is_red(show, record_of):
    record = record_of("gsm8k_dead")
    assert record.verdict is Verdict.FAIL
    page = show(record, width=1280).page
    for badge in page.locator(".badge:visible").all():
        words, style = badge.inner_text().strip(), badge.get_attribute("class").split()[-1]
        assert style == {"PASS": "pass", "FAIL": "fail", "UNKNOWN": "unknown"}.get(
            re.split(" ", words)[0], "none"
        )

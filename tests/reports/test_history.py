"""The page of `harness report --history`: links, charts of trends, what is folded or cut; hostile text shows as text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.cli import run
from harness.comparing.history import gather_history
from harness.records.history import HistoryPoint, Line, Series, VersionMark
from harness.records.record import RunRecord
from reports.history import render
from reports.history_charts import MOST_COLUMNS, trend_chart
from tests.records.kept_records import RECORDS, put, read


def test_exit_codes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["report", "--history", str(tmp_path / "empty")]) == 2
    assert run(["report", "--history", str(tmp_path / "nowhere")]) == 64


def test_runs_link_to_the_report_beside_them(tmp_path: Path) -> None:
    put(read("pass"), tmp_path / 'a "quoted" & <b>', 1)
    put(read("pass"), tmp_path / "plain", 2)
    here = tmp_path / 'a "quoted" & <b>' / "day1"
    (here / "report.html").write_text("drawn")
    assert run(["report", "--history", str(tmp_path)]) == 0
    page = (tmp_path / "history.html").read_text()
    assert re.findall(r'<a href="([^"#]+)">', page) == ["a%20%22quoted%22%20%26%20%3Cb%3E/day1/report.html"]


def test_the_page_is_well_formed_closed_and_stable(tmp_path: Path, elements: Callable[[str], Any]) -> None:
    for day, name in enumerate(["pass", "fail", "mixed", "gsm8k_pass", "mutants", "unknown"], start=1):
        put(read(name), tmp_path, day, torch=f"2.{day}")
    history = gather_history(tmp_path)
    page = render(history)
    parsed = elements(page)
    assert parsed.unbalanced == []
    assert "default-src 'none'" in page
    assert render(gather_history(tmp_path)) == page
    ids = [a["id"] for _, a in parsed.found if "id" in a]
    assert len(ids) == len(set(ids))
    anchors = [a["href"][1:] for _, a in parsed.found if (a.get("href") or "").startswith("#")]
    assert set(anchors) - set(ids) == set()
    assert len([tag for tag, _ in parsed.found if tag == "h1"]) == 1
    json.dumps(asdict(history))


def test_hostile_text_shows_as_text(
    tmp_path: Path, hostile: Callable[[Any], Any], is_harmless: Callable[[str], None]
) -> None:
    for name in ("pass", "mixed", "gsm8k_pass", "gsm8k_dead", "mutants"):
        data = hostile(json.loads((RECORDS / f"{name}.json").read_text()))
        data["environment"]["packages"] = {f"torch{data['run_id']}": data["run_id"]}
        data["created"] += "<script>alert(1)</script>"
        (tmp_path / f"{name}<img src=x>.json").write_text(json.dumps(data))
    (tmp_path / "bad\u202e<script>.json").write_text('{"schema": "<script>"}')
    is_harmless(render(gather_history(tmp_path)))


def test_older_runs_are_folded_away_and_all_there(tmp_path: Path) -> None:
    for number in range(60):
        record = RunRecord(f"run-{number}", f"2027-01-01T00:{number:02}:00+00:00", ["harness", "check"])
        record.reason = f"reason of {number}."
        record.write(tmp_path / f"{number}.json")
    page = render(gather_history(tmp_path))
    shown, folded = page.split("<summary>10 older runs</summary>")
    assert "reason of 10." in shown
    assert "reason of 9." in folded
    assert all(f"reason of {number}." in page for number in range(60))


def test_a_megabyte_of_one_letter_is_cut(tmp_path: Path) -> None:
    record = read("fail")
    record.reason = record.rules[0].reason = record.run_id = record.candidates[0].name = "A" * 1_000_000
    record.write(tmp_path / "record.json")
    assert len(render(gather_history(tmp_path))) < 100_000


def series(values: list[float], kind: str = "margin") -> Series:
    return Series(kind, "GEMM", [HistoryPoint(i, value, bad=value > 1) for i, value in enumerate(values)])


def test_a_trend_with_many_runs_keeps_the_worst_of_each_place() -> None:
    values = [0.5] * 5_000
    values[1_234] = 9.0
    names = [str(i) for i in range(5_000)]
    chart = trend_chart(Line("a", "b"), series(values), names)
    assert chart is not None
    assert len(chart.dots) <= MOST_COLUMNS
    assert [dot.label for dot in chart.dots if dot.bad] == ["1234: 9, FAIL, worst of 50 runs"]
    assert "highest 9" in chart.summary
    accuracy = [0.95] * 5_000
    accuracy[777] = 0.01
    chart = trend_chart(Line("a", "b"), series(accuracy, "accuracy"), names)
    assert chart is not None
    assert [dot.label for dot in chart.dots if dot.label.startswith("777")] == [
        "777: 1.00 %, worst of 50 runs"
    ]


def test_a_trend_puts_the_bound_between_legal_and_illegal_and_exact_hits_on_the_floor() -> None:
    chart = trend_chart(Line("a", "b"), series([0.0, 0.5, 4.0]), ["x", "y", "z"])
    assert chart is not None
    exact, legal, illegal = (float(dot.y) for dot in chart.dots)
    assert illegal < float(chart.limit_at) < legal < exact


def test_a_mark_stands_before_the_first_run_with_the_new_versions() -> None:
    marks = [VersionMark(2, []), VersionMark(9, [])]
    chart = trend_chart(Line("a", "b", marks), series([0.5, 0.5, 0.5, 0.5]), list("wxyz"))
    assert chart is not None
    assert [mark.label for mark in chart.marks] == ["1"], "no run of this series has the second"
    assert float(chart.dots[1].x) < float(chart.marks[0].at) < float(chart.dots[2].x)


def test_marks_of_one_place_are_one() -> None:
    marks = [VersionMark(run, []) for run in (1, 2, 3)]
    points = [HistoryPoint(0, 0.5), HistoryPoint(5, 0.5)]
    chart = trend_chart(Line("a", "b", marks), Series("margin", "GEMM", points), ["x"] * 6)
    assert chart is not None
    assert [mark.label for mark in chart.marks] == ["1-3"]


@pytest.mark.parametrize("values", [[0.0], [1e-300, 1e300], [1.0, 1.0], [float("inf"), 0.5], [5.0] * 3])
@pytest.mark.parametrize("kind", ["margin", "duration"])
@pytest.mark.parametrize("small", [True, False])
def test_a_trend_of_odd_values_stays_on_the_chart(values: list[float], kind: str, small: bool) -> None:
    chart = trend_chart(Line("a", "b"), series(values, kind), ["x"] * 3, small=small)
    assert chart is not None
    for dot in chart.dots:
        assert 0 <= float(dot.y) <= 170
    assert "nan" not in chart.path


def test_a_trend_without_a_finite_value_is_not_drawn() -> None:
    assert trend_chart(Line("a", "b"), series([float("nan")]), ["x"]) is None

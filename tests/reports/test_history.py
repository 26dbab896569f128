"""`harness report --history`: what is not good since when, trends, marks where versions changed, unreadable files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.cli import run
from harness.comparing.history import gather_history, read_figures
from harness.gsm8k.statistics import wilson
from harness.records.history import History, HistoryPoint, Line, Series, VersionMark
from harness.records.record import RuleResult, RunRecord
from harness.verdict import Verdict
from reports.history import render
from reports.history_charts import MOST_COLUMNS, trend_chart
from tests.reports.kept_records import RECORDS, read


def put(record: RunRecord, folder: Path, day: int, **changes: Any) -> None:
    """Write a record of a day of January 2027, with other packages and verdicts of a rule REPEAT."""
    record = copy.deepcopy(record)
    record.created = f"2027-01-{day:02}T06:30:00+00:00"
    record.environment.packages = {"torch": changes.pop("torch", "2.13.0")}
    record.environment.git_commit = ("a" if day < 4 else "b") * 40
    record.environment.gpus = changes.pop("gpus", [])
    word = changes.pop("repeat", "")
    if word:
        rule = RuleResult("REPEAT", "same bits", "eager", Verdict(word), f"{word} on day {day}", examples=4)
        rule.worst_ratio, rule.seconds = changes.pop("ratio", 0.5), 2.0
        record.rules.append(rule)
    assert not changes
    (folder / f"day{day}").mkdir(parents=True)
    record.write(folder / f"day{day}" / "record.json")


def line_of(history: History, who: str, gpu: str = "cpu") -> Line:
    (line,) = [line for line in history.lines if (line.who, line.gpu) == (who, gpu)]
    return line


def series_of(line: Line, kind: str, subject: str) -> Series:
    (series,) = [s for s in line.series if (s.kind, s.subject) == (kind, subject)]
    return series


def test_runs_are_ordered_by_time_whatever_their_names_and_zones(tmp_path: Path) -> None:
    for name, created in (
        ("a", "2027-01-02T00:30:00+00:00"),
        ("b", "2027-01-02T00:00:00-01:00"),
        ("c", "2027-01-02T02:00:00+02:00"),
        ("d", "yesterday"),
    ):
        record = read("pass")
        record.created = created
        record.write(tmp_path / f"{name}.json")
    assert [r.name for r in gather_history(tmp_path).runs] == ["d.json", "c.json", "a.json", "b.json"]


def test_what_is_not_good_now_says_since_when_and_what_changed_then(tmp_path: Path) -> None:
    words = ["PASS", "FAIL", "PASS", "FAIL", "UNKNOWN", "FAIL"]
    for day, word in enumerate(words, start=1):
        put(read("pass"), tmp_path, day, repeat=word, torch="2.13.0" if day < 4 else "2.14.0")
    history = gather_history(tmp_path)
    (standing,) = history.standing
    assert (standing.subject, standing.who, standing.gpu, standing.word, standing.bad) == (
        "REPEAT", "eager", "cpu", "FAIL", True,
    )  # fmt: skip
    assert (standing.good, standing.since, standing.newest, standing.runs) == (2, 3, 5, 3)
    assert [(c.name, c.before, c.after) for c in standing.changes] == [("torch", "2.13.0", "2.14.0")]
    assert standing.reason == "FAIL on day 6"
    assert history.verdict is Verdict.FAIL
    assert "first: REPEAT on eager, FAIL since 2027-01-04T06:30" in history.reason
    page = render(history)
    assert "torch 2.13.0 → 2.14.0, commit aaaaaaaaaa → bbbbbbbbbb" in page
    assert "2027-01-03 06:30" in page


def test_a_history_in_which_everything_is_good_is_a_pass_and_one_of_nothing_unknown(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert gather_history(tmp_path / "empty").verdict is Verdict.UNKNOWN
    put(read("pass"), tmp_path, 1, repeat="FAIL")
    put(read("pass"), tmp_path, 2, repeat="PASS")
    history = gather_history(tmp_path)
    assert (history.verdict, history.standing) == (Verdict.PASS, [])
    assert "newest verdicts are good, over 2 runs" in history.reason


def test_candidates_and_gpus_are_kept_apart_and_versions_marked_on_each(tmp_path: Path) -> None:
    put(read("pass"), tmp_path, 1, repeat="PASS", ratio=0.1, gpus=["B200"], torch="2.13.0")
    put(read("pass"), tmp_path, 2, repeat="FAIL", ratio=7.0, gpus=["GB300"], torch="2.14.0")
    put(read("pass"), tmp_path, 3, repeat="PASS", ratio=0.2, gpus=["B200"], torch="2.14.0")
    put(read("pass"), tmp_path, 4, repeat="PASS", ratio=0.3, gpus=["B200"], torch="2.14.0")
    history = gather_history(tmp_path)
    line = line_of(history, "eager", "B200")
    points = series_of(line, "margin", "REPEAT").points
    assert [(p.run, p.value, p.bad) for p in points] == [(0, 0.1, False), (2, 0.2, False), (3, 0.3, False)]
    assert [(m.run, [(c.name, c.after) for c in m.changes]) for m in line.marks] == [
        (2, [("torch", "2.14.0")])
    ]
    other = line_of(history, "eager", "GB300")
    assert [(p.value, p.bad) for p in series_of(other, "margin", "REPEAT").points] == [(7.0, True)]
    assert other.marks == []
    assert len(series_of(line, "duration", "rules, quick").points) == 3


def test_accuracy_has_its_interval_and_its_server_version_is_a_version(tmp_path: Path) -> None:
    for day, name in enumerate(("gsm8k_pass", "gsm8k_dead"), start=1):
        record = read(name)
        assert record.gsm8k is not None
        record.gsm8k["server"] = {"model": "a-model", "version": f"0.{day}"}
        put(record, tmp_path, day)
    history = gather_history(tmp_path)
    line = line_of(history, "a-model", history.runs[0].gpu)
    first, second = series_of(line, "accuracy", "gsm_canary").points
    low = wilson(32, 32).low
    assert (first.value, first.low, first.high, first.bad) == (1.0, pytest.approx(low), 1.0, False)
    assert (second.value, second.bad) == (0.0, True)
    assert [[(c.name, c.before, c.after) for c in m.changes] for m in line.marks] == [
        [("server", "0.1", "0.2")]
    ]
    (standing,) = history.standing
    assert (standing.part, standing.subject, standing.word, standing.since) == (
        "gsm8k", "gsm_canary", "FAIL (dead)", 1,
    )  # fmt: skip


def test_canary_and_planted_faults_have_their_lines(tmp_path: Path) -> None:
    record = read("mutants")
    record.canary = {
        "runs": [{"candidate": "mine", "verdict": "PASS", "accuracy_strict": 0.9, "interval": [0.8, 0.95],
                  "seconds": {"requests": 12.0}}],
    }  # fmt: skip
    put(record, tmp_path, 1)
    history = gather_history(tmp_path)
    (canary,) = series_of(line_of(history, "mine"), "accuracy", "canary").points
    assert (canary.value, canary.low, canary.high) == (0.9, 0.8, 0.95)
    assert series_of(line_of(history, "mine"), "duration", "canary requests").points[0].value == 12.0
    assert series_of(line_of(history, "physical"), "score", "planted faults killed").points[0].value == 1.0


def test_files_that_cannot_be_read_are_listed_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(read("pass"), tmp_path, 1)
    text = (tmp_path / "day1" / "record.json").read_text()
    (tmp_path / "newer.json").write_text(text.replace('"schema": 1', '"schema": 99'))
    (tmp_path / "cut.json").write_text(text[:500])
    (tmp_path / "field.json").write_text(text.replace('"seed": 0', '"seed": "none"'))
    (tmp_path / "stage.json").write_text(text.replace('"gsm8k": null', '"gsm8k": {"answered": "many"}'))
    (tmp_path / "deep.json").write_text('{"schema": 1, "gsm8k": ' + '{"a":' * 100_000)
    (tmp_path / "other.json").write_text('{"name": "package.json"}')
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.json").write_text("{")
    history = gather_history(tmp_path)
    assert len(history.runs) == 1
    assert history.others == 1
    reasons = {u.name: u.reason for u in history.unreadable}
    assert reasons.keys() == {"newer.json", "cut.json", "field.json", "stage.json", "deep.json"}
    assert "has schema 99, this version of the harness reads up to 1" in reasons["newer.json"]
    assert "cut.json: is not a JSON record" in reasons["cut.json"]
    assert reasons["field.json"] == "field.json: record.seed must be int, got 'none'"
    assert "record.gsm8k.answered must be int, got 'many'" in reasons["stage.json"]
    page = render(history)
    assert all(name in page for name in reasons)
    assert run(["report", "--history", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    done = capsys.readouterr()
    assert done.out == f"1 records, 5 that cannot be read\nhistory: {tmp_path / 'page' / 'history.html'}\n"
    assert "not read: field.json: record.seed must be int" in done.err


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


def test_figures_are_read_without_samples_and_failing_problems() -> None:
    record = read_figures(RECORDS / "gsm8k_dead.json", "x")
    assert record.gsm8k is not None
    assert "samples" not in record.gsm8k
    assert record.gsm8k["accuracy_strict"] == 0.0
    assert read_figures(RECORDS / "fail.json", "x").failures == []


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

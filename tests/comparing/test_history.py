"""Many records gathered: what is not good since when, trends, marks where versions changed, unreadable files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import run
from harness.comparing.history import gather_history, read_figures
from harness.gsm8k.statistics import wilson
from harness.records.history import History, Line, Series
from harness.verdict import Verdict
from reports.history import render
from tests.records.kept_records import RECORDS, put, read


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


def test_figures_are_read_without_samples_and_failing_problems() -> None:
    record = read_figures(RECORDS / "gsm8k_dead.json", "x")
    assert record.gsm8k is not None
    assert "samples" not in record.gsm8k
    assert record.gsm8k["accuracy_strict"] == 0.0
    assert read_figures(RECORDS / "fail.json", "x").failures == []

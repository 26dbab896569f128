"""A report that is given the runs before it says since when its first failure is there, and when it last was not."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from harness.cli import run
from harness.comparing.history import gather_past
from harness.records.record import RunRecord, load_record
from tests.records.kept_records import put, read, with_rule


@pytest.fixture
def nightly(tmp_path: Path) -> Path:
    """REPEAT passed on two days, failed from the third on; torch changed between."""
    for day, word in enumerate(("PASS", "PASS", "FAIL", "FAIL", "FAIL"), start=1):
        put(read("pass"), tmp_path, day, repeat=word, torch="2.12.0" if day < 3 else "2.13.0")
    return tmp_path


def since(folder: Path) -> str:
    page = re.sub("<wbr>", "", (folder / "report.html").read_text())
    found = re.search(r'(?s)<p class="since">(.*?)</p>', page)
    return " ".join(unescape(re.sub("<[^>]*>", "", found[1])).split()) if found else ""


def with_failure(folder: Path) -> None:
    """Give the run of a folder a failing problem, so that there is something to look at first."""
    record, failing = load_record(folder), read("fail").failures[0]
    failing.rule, failing.candidate = "REPEAT", "eager"
    next(rule for rule in record.rules if rule.rule == "REPEAT").failures = [failing]
    record.write(folder / "record.json")


def test_a_report_says_since_when_and_what_changed(nightly: Path) -> None:
    (nightly / "day2" / "report.html").write_text("drawn")
    with_failure(nightly / "day4")
    assert run(["report", str(nightly / "day4"), "--history", str(nightly)]) == 0
    said = since(nightly / "day4")
    assert said.startswith(
        "Since 2027-01-03 06:30 (2 runs in a row); last good 2027-01-02 06:30; changed between: "
    )
    assert "torch 2.12.0 → 2.13.0" in said, "and nothing of the day after it"
    assert (
        '<a href="../day2/report.html">2027-01-02 06:30</a>' in (nightly / "day4" / "report.html").read_text()
    )
    assert run(["report", str(nightly / "day4")]) == 0
    assert since(nightly / "day4") == "", "without the folder"


def test_the_first_bad_run_and_one_without_a_good_one(nightly: Path, tmp_path: Path) -> None:
    with_failure(nightly / "day3")
    assert run(["report", str(nightly / "day3"), "--history", str(nightly)]) == 0
    assert since(nightly / "day3").startswith("Since this run; last good 2027-01-02 06:30; changed between: ")
    for day in ("1", "2"):
        (nightly / f"day{day}" / "record.json").unlink()
    assert run(["report", str(nightly / "day3"), "--history", str(nightly)]) == 0
    assert since(nightly / "day3") == "Since this run; no good run before."


def test_a_run_outside_of_the_folder_is_the_newest(nightly: Path) -> None:
    record = with_rule("FAIL")
    record.created = "2027-02-01T00:00:00+00:00"
    past = gather_past(nightly, record)
    assert len(past.runs) == 6
    (standing,) = [s for s in past.standing if s.subject == "REPEAT"]
    assert (standing.since, standing.runs, standing.good, standing.newest) == (2, 4, 1, 5)


def test_check_takes_the_folder_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[RunRecord, Path, Path]] = []
    monkeypatch.setattr("harness.running.check.run_check", lambda *_: None)
    monkeypatch.setattr("harness.cli.report.draw_with_past", lambda *given: drawn.append(given))
    runs, out = tmp_path / "runs", tmp_path / "runs" / "today"
    arguments = ["check", "--candidate", "eager", "--out", str(out), "--history", str(runs)]
    assert run(arguments) == 64, "there is no such folder"
    runs.mkdir()
    run(arguments)
    assert [given[1:] for given in drawn] == [(out, runs)]
    assert run(["report", str(out), str(out), "--history", str(tmp_path)]) == 64
    assert "at most one record with --history" in capsys.readouterr().err

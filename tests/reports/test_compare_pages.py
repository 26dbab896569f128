"""`harness report A B`: the page, the markdown, the files and the exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.cli import run
from harness.comparing.runs import compare_records
from harness.records.record import RunRecord, parse_record
from harness.verdict import Verdict
from reports.compare import render
from reports.compare_markdown import code, escape, markdown
from tests.records.kept_records import RECORDS, read, with_rule


def test_the_pages_start_with_regressions() -> None:
    records = with_rule("PASS"), with_rule("FAIL")
    records[0].rules[0].verdict = Verdict.FAIL
    found = compare_records(*records)
    for page, heading in ((render(found), '<h2 id="{}-title"'), (markdown(found), "### {}")):
        names = ("regressions", "improvements", "unchanged")
        places = [page.index(heading.format(n if "<" in heading else n.capitalize())) for n in names]
        assert places == sorted(places)
    assert render(found).startswith("<!DOCTYPE html>")
    assert "<title>FAIL: before to after</title>" in render(found)
    json.dumps(asdict(found))


def test_the_page_is_closed_to_the_network_and_well_formed(elements: Callable[[str], Any]) -> None:
    page = render(compare_records(read("pass"), with_rule("FAIL")))
    parsed = elements(page)
    assert parsed.unbalanced == []
    assert "default-src 'none'" in page
    ids = [a["id"] for _, a in parsed.found if "id" in a]
    assert len(ids) == len(set(ids))


def test_hostile_text_shows_as_text(
    hostile: Callable[[Any], Any], is_harmless: Callable[[str], None]
) -> None:
    for names in (("pass", "mixed"), ("gsm8k_pass", "gsm8k_dead"), ("mutants", "mutants"), ("fail", "fail")):
        before, after = (
            parse_record(hostile(json.loads((RECORDS / f"{name}.json").read_text())), name) for name in names
        )
        if after.gsm8k is not None:
            after.gsm8k["metric"] = "strict"
        found = compare_records(before, after)
        assert found.compared
        is_harmless(render(found))
        check_markdown(markdown(found))


def check_markdown(text: str) -> None:
    """Every row has the cells of its head, and nothing of the hostile text is markup."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table
    outside = re.sub(r"(`{2,}) .*? \1(?!`)", "", text)
    assert "<script" not in outside
    assert "<img" not in outside
    assert not re.search(r"(?<!\\)\[x\]", outside)
    assert "@everyone" not in outside
    assert "https://" not in outside
    assert [line for line in text.splitlines() if line.startswith("# ")] == []
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("x*y|z", r"x\*y\|z"),
        ("<b> & c", "&lt;b> &amp; c"),
        ("two\nlines", "two lines"),
        ("\u202e", r"\\u202e"),
    ],
)
def test_markdown_takes_text_literally(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_markdown_code_survives_backticks_and_pipes() -> None:
    assert code("harness check") == "`harness check`"
    assert code("a ` b | c") == "`` a ` b \\| c ``"


def write(record: RunRecord, folder: Path) -> Path:
    folder.mkdir(parents=True)
    record.write(folder / "record.json")
    return folder


def test_exit_codes_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(with_rule("PASS"), tmp_path / "good"), write(with_rule("FAIL"), tmp_path / "bad")
    other = write(read("unknown"), tmp_path / "other")
    assert run(["report", str(good), str(bad)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "regression: REPEAT on eager: PASS to FAIL: FAIL here"
    assert out[1].startswith("FAIL: 1 regression, no improvements, 3 verdicts unchanged")
    assert out[2:] == [f"comparison: {bad / 'compare.html'}", f"comparison: {bad / 'compare.md'}"]
    assert (bad / "compare.md").read_text().startswith("## FAIL: 1 regression")
    assert run(["report", str(bad / "record.json"), str(good), "--out", str(tmp_path / "out")]) == 0
    assert "improvement: REPEAT on eager: FAIL to PASS" in capsys.readouterr().out
    assert (tmp_path / "out" / "compare.html").exists()
    assert run(["report", str(good), str(other)]) == 2
    assert run(["report", str(good), str(tmp_path / "nowhere")]) == 64
    assert run(["report", str(good), str(bad), str(other)]) == 64
    assert run(["report"]) == 64
    assert run(["report", str(good), str(bad), "--history", str(tmp_path)]) == 64


def test_a_folder_alone_compares_its_newest_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = with_rule("PASS"), with_rule("FAIL"), read("mutants")
    for day, record in enumerate(records, start=1):
        record.created = f"2027-01-0{day}T00:00:00+00:00"
        write(record, tmp_path / "runs" / f"{day}")
        (tmp_path / "runs" / f"{day}" / "report.html").write_text("drawn")
    assert run(["report", str(tmp_path / "runs")]) == 2
    assert "is the newest of 3 records, and none before it" in capsys.readouterr().out
    (tmp_path / "runs" / "3" / "record.json").unlink()
    assert run(["report", str(tmp_path / "runs")]) == 1
    page = (tmp_path / "runs" / "compare.html").read_text()
    assert '<a href="1/report.html">1/record.json</a>' in page
    assert '<a href="2/report.html">2/record.json</a>' in page

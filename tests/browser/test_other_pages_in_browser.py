"""The pages of comparison and history in a real browser, drawn by `harness report` from records of real runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.report import report_command
from tests.browser.pages import FOLD_OPEN, broken_words, violations

pytestmark = pytest.mark.browser

RECORDS = Path(__file__).parent.parent / "records" / "kept"


def compared(before: str, after: str, folder: Path, candidate: str = "") -> Path:
    """Compare two kept records, the second as if it was of that candidate; return the page."""
    for name in (before, after):
        (folder / name).mkdir()
        text = (RECORDS / f"{name}.json").read_text()
        if name == after and candidate:
            text = text.replace("eager+global_scale_inverted", candidate)
        (folder / name / "record.json").write_text(text)
        (folder / name / "report.html").write_text("drawn")
    arguments = [str(folder / before), str(folder / after), "--out", str(folder)]
    done = CliRunner().invoke(report_command, arguments, standalone_mode=False)
    assert done.exception is None, done.output
    return folder / "compare.html"


@pytest.fixture(params=["comparison", "comparison of gsm8k", "history"])
def page(request, tmp_path):
    """The file, and a word of its heading."""
    if request.param == "history":
        for name in ("pass", "fail", "mixed", "gsm8k_pass", "gsm8k_dead", "mutants"):
            (tmp_path / name).mkdir()
            shutil.copy(RECORDS / f"{name}.json", tmp_path / name / "record.json")
        arguments, file = ["--history", str(tmp_path)], "history.html"
    else:
        sides = ("gsm8k_pass", "gsm8k_dead") if "gsm8k" in request.param else ("pass", "mixed")
        arguments = [*(str(RECORDS / f"{side}.json") for side in sides), "--out", str(tmp_path)]
        file = "compare.html"
    done = CliRunner().invoke(report_command, arguments, standalone_mode=False)
    assert done.exception is None, done.output
    return tmp_path / file


@pytest.mark.parametrize(("scheme", "width"), [("light", 400), ("dark", 1280)])
def test_it_is_readable_accessible_and_silent(show, page, scheme, width):
    opened = show(page, width=width, color_scheme=scheme)
    assert opened.page.locator("h1").bounding_box()["y"] < 200
    assert opened.overflow <= 0
    opened.page.evaluate(FOLD_OPEN)
    assert opened.overflow <= 0
    assert broken_words(opened.page) == []
    assert violations(opened.page) == []
    for badge in opened.page.locator(".badge:visible", has_text="FAIL").all():
        assert "fail" in badge.get_attribute("class").split(), "FAIL (dead) is red too"


def test_an_accuracy_that_fell_stands_once(show, tmp_path):
    page = show(compared("gsm8k_pass", "gsm8k_dead", tmp_path)).page
    assert page.locator("#regressions").get_by_text("more than a drop of 2 points").count() == 1
    assert page.get_by_text("more than a drop of 2 points").count() == 1
    assert page.locator("#accuracy").count() == 0


def test_the_only_regression_names_its_candidate_and_leads_to_its_report(show, tmp_path):
    page = show(compared("pass", "mixed", tmp_path)).page
    row = page.locator("#regressions tbody tr")
    assert row.count() == 1
    assert "eager+weight_scale_tiles_transposed" in row.locator("td").first.inner_text().replace("\n", "")
    assert row.locator("a").get_attribute("href") == "mixed/report.html"
    assert "--candidate eager+weight_scale_tiles_transposed" in row.locator("code").inner_text()


def test_a_rule_that_fell_leads_to_its_line(tmp_path):
    page = compared("pass", "fail", tmp_path, candidate="eager").read_text()
    assert 'href="fail/report.html#rule-QUANT-eager"' in page

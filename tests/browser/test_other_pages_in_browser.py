"""The pages of comparison and history in a real browser, drawn by `harness report` from records of real runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.report import report_command

pytestmark = pytest.mark.browser

RECORDS = Path(__file__).parent.parent / "records" / "kept"
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


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


@pytest.mark.parametrize(("scheme", "width"), [("light", 400), ("dark", 1100)])
def test_it_is_readable_accessible_and_silent(show, page, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    opened = show(page, width=width, color_scheme=scheme)
    assert opened.page.locator("h1").bounding_box()["y"] < 200
    assert opened.overflow <= 0
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert opened.overflow <= 0
    found = Axe().run(opened.page, options={"runOnly": AXE_TAGS}).response["violations"]
    assert [(v["id"], v["nodes"][0]["target"]) for v in found] == []

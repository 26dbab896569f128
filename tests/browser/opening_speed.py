"""How long a browser takes to open the report of a GSM8K run of 1,319 questions: python -m tests.browser.opening_speed.

Answers of about 400 tokens, none right, which is the largest page: wrong ones are shown at more length. Needs Chromium
and pip install 'fp4-moe-harness[browser]'.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from reports.html import write_report
from tests.browser.conftest import ARGUMENTS, NAMES, gsm8k

QUESTIONS = 1319
TIMES = 7
# From the start of the navigation to the end of the load event, and to the next frame that is drawn.
_LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
_DRAWN = "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"


def main() -> None:
    """Print size, elements and times."""
    record = gsm8k(QUESTIONS)
    for sample in (record.gsm8k or {})["samples"]:
        sample["class"] = "wrong number"
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        report = write_report(record, Path(folder))
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=False, args=ARGUMENTS)
        loaded, drawn = [], []
        for _ in range(TIMES):
            page = browser.new_page()
            page.goto(report.as_uri())
            loaded.append(page.evaluate(_LOADED) / 1000)
            drawn.append(page.evaluate(_DRAWN) / 1000)
            elements = page.evaluate("document.querySelectorAll('*').length")
            page.close()
        browser.close()
        print(f"{QUESTIONS:,} questions: {report.stat().st_size / 1e6:.2f} MB, {elements:,} elements")
    for name, times in (("loaded", loaded), ("drawn", drawn)):
        print(f"{name}: median {statistics.median(times):.2f} s, longest {max(times):.2f} s of {TIMES}")


if __name__ == "__main__":
    main()

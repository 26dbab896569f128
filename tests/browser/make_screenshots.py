"""Photograph the main pages (make screenshots): docs/report.png of README's command, docs/screenshots of kept records."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.cli import run
from reports.html import write_report
from tests.browser.conftest import ARGUMENTS, NAMES, RECORDS, STATES, golden

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 150_000
WIDE, PHONE = (1280, 800), (400, 1000)


def main() -> None:
    """Write every picture; fail where one is too large to be kept beside the text."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, chromium_sandbox=False, args=ARGUMENTS)
        for picture, (page, anchor, size, scheme) in pictures(Path(folder)).items():
            file = DOCS / picture
            file.parent.mkdir(exist_ok=True)
            photograph(browser, f"{page.as_uri()}{anchor}", file, size, scheme)
            if file.stat().st_size > MOST_BYTES:
                raise SystemExit(f"{file}: {file.stat().st_size:,} bytes, at most {MOST_BYTES:,} are kept")
            print(f"{file.relative_to(DOCS.parent)}: {file.stat().st_size:,} bytes")
        browser.close()


def readme_run(folder: Path) -> Path:
    """Run the command of README.md and return the report that it leaves."""
    command = ["check", "--no-canary", "--candidate", "physical+alpha_of_neighbour@7", "--rule", "GEMM"]
    environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
    subprocess.run([sys.executable, "-m", "harness.cli", *command], cwd=folder, env=environment, check=False)
    return folder / "harness-out" / "report.html"


def pictures(folder: Path) -> dict[str, tuple[Path, str, tuple[int, int], str]]:
    """Draw the pages into a folder; return for each picture its page, anchor, size of the window and colour scheme."""
    pages = {name: write_report(make(), folder / name) for name, make in STATES.items()}
    for name in ("pass", "mixed", "gsm8k_pass", "gsm8k_dead", "mutants"):
        (folder / "runs" / name).mkdir(parents=True)
        shutil.copy(RECORDS / f"{name}.json", folder / "runs" / name / "record.json")
    runs = folder / "runs"
    with contextlib.chdir(runs):  # the pages name the records as they were given
        for name in ("pass", "mixed"):
            run(["report", name])
        run(["report", "pass", "mixed", "--out", str(folder / "compare")])
        run(["report", "--history", "."])
    seen = {
        "pass": (pages["quick"], ""),
        "gsm8k": (pages["gsm8k"], ""),
        "canary": (pages["canary"], "#canary"),
        "mutants": (write_report(golden("mutants"), folder / "as run"), ""),
        "numerics": (pages["quick"], "#candidates"),
        "replay": (pages["replay"], ""),
        "compare": (folder / "compare" / "compare.html", ""),
        "history": (runs / "history.html", ""),
    }
    found = {f"screenshots/{name}.png": (*page, WIDE, "light") for name, page in seen.items()}
    found["report.png"] = (readme_run(folder), "", WIDE, "light")
    found["screenshots/fail-phone.png"] = (pages["neighbour"], "", PHONE, "dark")
    found["screenshots/pass-phone.png"] = (pages["quick"], "", PHONE, "dark")
    return found


def photograph(browser: Any, address: str, file: Path, size: tuple[int, int], scheme: str) -> None:
    """Write what a window of that size shows of a page, folded parts of its target unfolded."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        # Documents show them no wider than that.
        device_scale_factor=0.75 if width > 1000 else 1,
        offline=True,
        color_scheme=scheme,
    )
    page = context.new_page()
    page.goto(address)
    if "#candidates" in address:
        page.locator("#candidates details").first.locator("summary").click()
    page.screenshot(path=str(file))
    context.close()


if __name__ == "__main__":
    main()

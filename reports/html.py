"""One record as one HTML file that loads nothing: `render` and `write_report`."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from markupsafe import Markup

from harness.records.whole_files import write_whole
from reports import summary, text
from reports.sections import draw_all
from reports.template import asset, fill

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.records.history import History
    from harness.records.record import RunRecord
    from reports.sections import Drawn

REPORT_NAME = "report.html"

STYLESHEETS = ("page.css", "triage.css", "charts.css", "gsm8k.css")
SCRIPTS = ("copy.js", "gsm8k.js", "rules.js")


def render(record: RunRecord, past: History | None = None) -> str:
    """Return the page for a record. The same record, and the same history, give the same bytes.

    Args:
        record: of the run.
        past: the history that ends with this run (`harness.comparing.history.gather_past`), for since when it fails.
    """
    return assemble(
        title=summary.page_title(record),
        header=summary.header(record, past),
        footer=summary.footer(record),
        verdict=record.verdict,
        sections=draw_all(record),
        has_rules=bool(record.rules),
    )


def assemble(
    *,
    title: str,
    header: Markup,
    footer: Markup,
    verdict: str,
    sections: Sequence[Drawn],
    styles: Sequence[str] = STYLESHEETS,
    scripts: Sequence[str] = SCRIPTS,
    has_rules: bool = False,
) -> str:
    """Return a page of these parts: report, comparison and history are all made here, under the same policy.

    Args:
        title: of the browser's tab.
        header: the top of the page.
        footer: its last lines.
        verdict: word that the top is coloured by; "" for none.
        sections: in order, each with its anchor and heading.
        styles: stylesheets of this folder.
        scripts: scripts of this folder.
        has_rules: whether there are rules to filter.
    """
    style_texts = [asset(name) for name in styles]
    script_texts = [asset(name) for name in scripts]
    page = fill(
        "page.html.j2",
        policy=content_security_policy(style_texts, script_texts),
        # Our own files, unescaped because a browser reads style and script as raw text.
        styles=[Markup(style) for style in style_texts],  # noqa: S704
        scripts=[Markup(script) for script in script_texts],  # noqa: S704
        title=title,
        header=header,
        footer=footer,
        verdict=verdict,
        sections=sections,
        has_rules=has_rules,
    )
    # A second net under the templates: no path into the page can bring a control character or a lone surrogate along.
    return text.visible(str(page))


def content_security_policy(styles: list[str], scripts: list[str]) -> str:
    """Return a policy under which only these styles and scripts apply, and nothing is loaded from anywhere."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hashes(styles)}",
            f"script-src {_hashes(scripts)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hashes(sources: list[str]) -> str:
    digests = (hashlib.sha256(source.encode()).digest() for source in sources)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"


def write_report(record: RunRecord, folder: Path, past: History | None = None) -> Path:
    """Write `report.html` into the folder, which is created if it is missing, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_NAME
    write_whole(path, render(record, past))
    return path

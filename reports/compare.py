"""Two runs side by side, as HTML and Markdown: `write_comparison`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.records.whole_files import write_whole
from reports.compare_markdown import markdown
from reports.compare_parts import parts
from reports.html import STYLESHEETS, assemble
from reports.sections import Drawn
from reports.tables import draw_part
from reports.template import fill
from reports.text import clip_plain

if TYPE_CHECKING:
    from pathlib import Path

    from harness.records.changes import RecordComparison

COMPARE_NAME = "compare"


def render(found: RecordComparison) -> str:
    """Return the page for a comparison. The same comparison gives the same bytes."""
    names = [clip_plain(side[-1].name, 60) for side in (found.before, found.after) if side]
    return assemble(
        title=f"{found.verdict}: {' to '.join(names)}",
        header=fill("compare.html.j2", found=found, most=20),
        footer=fill("compare_footer.html.j2"),
        verdict=found.verdict,
        sections=[Drawn(part.anchor, part.title, draw_part(part)) for part in parts(found)],
        styles=(*STYLESHEETS, "compare.css"),
        scripts=("copy.js",),
    )


def write_comparison(found: RecordComparison, folder: Path) -> list[Path]:
    """Write `compare.html` and `compare.md` into the folder, which is created if it is missing, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, text = folder / f"{COMPARE_NAME}.html", folder / f"{COMPARE_NAME}.md"
    write_whole(page, render(found))
    write_whole(text, markdown(found))
    return [page, text]

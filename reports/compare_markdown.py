"""A comparison of two runs as Markdown, for pull requests and step summaries: the sections of the HTML page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reports.compare_parts import parts
from reports.text import clip_plain, count

if TYPE_CHECKING:
    from harness.records.changes import RecordComparison, RunIdentity
    from reports.tables import Cell, Part, Table

CELL_LIMIT = 300
COMMAND_LIMIT = 1_000
ROWS = 50
# Underscores inside a word are literal in GitHub's Markdown; so is everything that matters at the start of a line only.
_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")


def markdown(found: RecordComparison) -> str:
    """Return the comparison as GitHub's Markdown. The same comparison gives the same text."""
    lines = [f"## {found.verdict}: {escape(found.reason, 600)}", ""]
    lines += [f"* {side}: {_run(run)}" for side, run in _runs(found)]
    for part in parts(found):
        lines += ["", *_part(part)]
    return "\n".join(lines) + "\n"


def escape(text: str, limit: int = CELL_LIMIT) -> str:
    """Return any text so that Markdown and HTML take it literally, on one line."""
    words = " ".join(clip_plain(text, limit).split())
    words = _SPECIAL.sub(r"\\\1", words.replace("&", "&amp;").replace("<", "&lt;"))
    # Neither somebody's notification nor a link that the renderer makes by itself.
    return words.replace("@", "&#64;").replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def code(text: str) -> str:
    """Return any text as inline code inside a table: fenced by more backticks than it holds, its pipes escaped."""
    words = " ".join(clip_plain(text, COMMAND_LIMIT).split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", words)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{words}{pad}{fence}".replace("|", "\\|") if words else ""


def _runs(found: RecordComparison) -> list[tuple[str, RunIdentity]]:
    return [("before", run) for run in found.before[:20]] + [("after", run) for run in found.after[:20]]


def _run(run: RunIdentity) -> str:
    return (
        f"{run.verdict} {escape(run.name)}, run {escape(run.run_id, 80)}, {escape(run.created, 60)}: "
        f"{escape(run.reason)}"
    )


def _part(part: Part) -> list[str]:
    lines = [f"### {part.title}"]
    if part.words:
        lines += ["", escape(part.words, 1_000)]
    for table in part.tables:
        if table.rows:
            lines += ["", *_table(table)]
    return lines


def _table(table: Table) -> list[str]:
    title = [f"#### {escape(table.title)}", ""] if table.title else []
    heads = [column.removesuffix("#") for column in table.columns]
    rules = ["---:" if column.endswith("#") else "---" for column in table.columns]
    rows = [[_cell(cell) for cell in row] for row in table.rows[:ROWS]]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)]
    left = len(table.rows) - len(rows)
    return title + lines + (["", f"{count(left)} more rows in the records."] if left else [])


def _cell(cell: Cell) -> str:
    if cell.kind == "command":
        return code(cell.text)
    if cell.kind == "change":
        return f"{escape(cell.text)} → **{escape(cell.after)}**"
    return f"**{escape(cell.text)}**" if cell.kind in {"name", "badge"} and cell.text else escape(cell.text)

"""`harness report`: draw a record again, compare two, or draw the history of many. Parsing and printing only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from harness.verdict import ExitCode, UsageError, Verdict, exit_code

if TYPE_CHECKING:
    from harness.comparing.runs import Run
    from harness.records.changes import AccuracyChange, RecordComparison, VerdictChange
    from harness.records.record import RunRecord

_PATH = click.Path(path_type=Path)
_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.UNKNOWN: "yellow"}
LINES = 10


@click.command("report")
@click.argument("records", type=_PATH, nargs=-1, metavar="RECORD...")
@click.option(
    "--history",
    type=_PATH,
    metavar="DIR",
    help="Draw the history of every record below this folder; with a RECORD, since when it fails, on its report.",
)
@click.option(
    "--merge",
    is_flag=True,
    help="Make one record of the RECORDs of all shards (harness check --shard), into --out.",
)
@click.option("--out", type=_PATH, help="Folder of the pages. Default: where the (second) record is, or DIR.")
def report_command(records: tuple[Path, ...], history: Path | None, merge: bool, out: Path | None) -> int:
    """Draw report.html of a RECORD again, compare two RECORDs, draw a history, or merge shards.

    A RECORD is a record.json or a folder. A folder that holds one record.json stands for it, any other for all records
    below it; alone it is compared with itself: the newest record with the newest before it that has something in common.

    A comparison writes compare.html and compare.md and exits 0 without a regression, 1 with one, and 2 where the records
    have nothing in common. A history writes history.html; with one RECORD of a single run it writes that run's report,
    which then says since when its first failure is there. Merged shards are judged as one run and exit as it does.
    """
    from harness.records.from_json import RecordError

    if merge:
        from harness.cli.merge import merge_into

        return merge_into(records, history, out)
    if not records and history is None:
        raise UsageError("Missing argument 'RECORD': give one to draw, two to compare, or --history DIR")
    most = 2 if history is None else 1
    if len(records) > most:
        raise UsageError(
            f"give at most {'two records' if most > 1 else 'one record with --history'}, got {len(records)}"
        )
    try:
        if history is not None:
            return _draw_with_past(records[0], history, out) if records else _history(history, out or history)
        if len(records) == 2:
            return _compare_sides(records[0], records[1], out)
        return _draw(records[0], out)
    except RecordError as error:
        raise UsageError(str(error)) from error


def _draw(path: Path, out: Path | None) -> int:
    """Draw one record, or compare the newest two of a folder."""
    from harness.ci.folder import prepare_folder
    from harness.records.find import load_records
    from reports.html import write_report

    found = load_records(path)
    if len(found) == 1:
        file, record = found[0]
        folder = prepare_folder(out or file.parent)
        click.echo(f"report: {write_report(record, folder)}")
        return ExitCode.PASS
    return _compare_newest(found, prepare_folder(out or path), path)


def _draw_with_past(path: Path, history: Path, out: Path | None) -> int:
    from harness.ci.folder import prepare_folder
    from harness.records.find import load_records

    found = load_records(path)
    if len(found) > 1:
        raise UsageError(f"give one RECORD with --history; {path} holds {len(found)}")
    file, record = found[0]
    click.echo(f"report: {draw_with_past(record, prepare_folder(out or file.parent), history)}")
    return ExitCode.PASS


def draw_with_past(record: RunRecord, folder: Path, history: Path) -> Path:
    """Write a record's report into a folder, with what the records below another one say of the time before it.

    Raises:
        RecordError: the history's folder is none.
    """
    from harness.comparing.history import gather_past
    from reports.html import write_report

    return write_report(record, folder, gather_past(history, record, lambda file: report_link(file, folder)))


def _compare_newest(found: list[tuple[Path, RunRecord]], folder: Path, root: Path) -> int:
    from harness.comparing.runs import compare, newest_pair

    runs = _runs(found, root, folder)
    pair = newest_pair(runs)
    if pair is None:
        click.secho(
            f"UNKNOWN: {runs[-1].name} is the newest of {len(runs)} records, and none before it has a rule on a common "
            "candidate, a GSM8K task, a canary or a planted fault in common with it",
            fg=_COLOURS[Verdict.UNKNOWN],
            bold=True,
        )
        return ExitCode.UNKNOWN
    return _write(compare([pair[0]], [pair[1]]), folder)


def _compare_sides(before: Path, after: Path, out: Path | None) -> int:
    from harness.ci.folder import prepare_folder
    from harness.comparing.runs import compare
    from harness.records.find import load_records

    sides = [(path, load_records(path)) for path in (before, after)]
    folder = prepare_folder(out or (after if after.is_dir() else after.parent))
    first, second = (_runs(found, path if len(found) > 1 else Path(), folder) for path, found in sides)
    return _write(compare(first, second), folder)


def _runs(found: list[tuple[Path, RunRecord]], root: Path, folder: Path) -> list[Run]:
    """Return the records with names below `root` and links from `folder` to the reports beside them."""
    from harness.comparing.runs import Run

    return [
        Run(
            str(file.relative_to(root) if file.is_relative_to(root) else file),
            record,
            report_link(file, folder),
        )
        for file, record in found
    ]


def report_link(record: Path, folder: Path) -> str:
    """Return the address of the report beside a record, relative to a folder; "" where there is none."""
    report = record.parent / "report.html"
    if record.name != "record.json" or not report.is_file():
        return ""
    return quote(os.path.relpath(report, folder).replace(os.sep, "/"), safe="/.")


def _write(found: RecordComparison, folder: Path) -> int:
    from reports.compare import write_comparison

    for heading, colour, changes in (
        ("regression", "red", found.regressions),
        ("improvement", "green", found.improvements),
    ):
        for change in changes[:LINES]:
            click.echo(f"{click.style(heading, fg=colour)}: {_line(change)}")
        if len(changes) > LINES:
            click.echo(f"{heading}: {len(changes) - LINES} more in compare.md")
    click.secho(f"{found.verdict.value}: {found.reason}", fg=_COLOURS[found.verdict], bold=True)
    for path in write_comparison(found, folder):
        click.echo(f"comparison: {path}")
    return exit_code(found.verdict)


def _line(change: VerdictChange | AccuracyChange) -> str:
    from harness.records.changes import AccuracyChange
    from reports.text import visible

    who = f"{change.subject} on {change.candidate}" if change.candidate else change.subject
    if isinstance(change, AccuracyChange):
        return visible(f"{who}: {change.words}")
    why = f": {change.reason.strip().splitlines()[0]}" if change.reason.strip() else ""
    return visible(f"{who}: {change.before} to {change.after}{why}")


def _history(folder: Path, out: Path) -> int:
    from harness.ci.folder import prepare_folder
    from harness.comparing.history import gather_history
    from reports.history import write_history
    from reports.text import visible

    found = gather_history(folder, lambda file: report_link(file, out))
    path = write_history(found, prepare_folder(out))
    for record in found.unreadable[:LINES]:
        click.echo(visible(f"not read: {record.reason}"), err=True)
    if len(found.unreadable) > LINES:
        click.echo(f"not read: {len(found.unreadable) - LINES} more, listed on the page", err=True)
    click.echo(f"{len(found.runs)} records, {len(found.unreadable)} that cannot be read")
    click.echo(f"history: {path}")
    return ExitCode.PASS if found.runs else ExitCode.UNKNOWN

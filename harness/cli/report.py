"""`harness report`."""

from __future__ import annotations

from pathlib import Path

import click

from harness.verdict import UsageError


@click.command("report")
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for report.html. Default: where the record is."
)
def report_command(record: Path, out: Path | None) -> None:
    """Draw report.html of RECORD (record.json, or the folder that holds it) again."""
    from harness.cli.output import prepare_folder
    from harness.record import RecordError, load_record
    from reports.html import write_report

    try:
        loaded = load_record(record)
    except RecordError as error:
        raise UsageError(str(error)) from error
    folder = prepare_folder(out or (record if record.is_dir() else record.parent))
    click.echo(f"report: {write_report(loaded, folder)}")

"""The end of every command that made a record: the record itself, files for people and for CI.

Trouble with a file costs that file, never the verdict; what an earlier run left under its name goes too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from harness.ci.folder import JUNIT_NAME, RECORD_NAME, REPORT_NAME
from harness.records.record import RunRecord
from harness.records.whole_files import FULL


def write_record(
    record: RunRecord, folder: Path, *, junit: Path | None = None, own_junit: bool = True
) -> dict[str, Path]:
    """Write record.json, and what is drawn from it as `write_outputs` does; return what was written, by name.

    Where the record cannot be written, one line says so and nothing is drawn.
    """
    path = folder / RECORD_NAME
    try:
        record.write(path)
    except OSError as error:
        _not_written("record", path, error)
        _remove(folder / REPORT_NAME, folder / JUNIT_NAME)
        return {}
    return {"record": path, **write_outputs(record, folder, junit=junit, own_junit=own_junit)}


def write_outputs(
    record: RunRecord,
    folder: Path,
    *,
    junit: Path | None = None,
    own_junit: bool = True,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Path]:
    """Write report.html and junit.xml, and what GitHub shows where the environment says that it is GitHub.

    Args:
        record: already written to the folder.
        folder: for the files.
        junit: another place for the JUnit XML.
        own_junit: False in a pytest session, which has its own (`--junitxml`).
        environment: GITHUB_STEP_SUMMARY names the summary's file; GITHUB_ACTIONS asks for annotations on stdout.

    Returns:
        What was written, by name.
    """
    from harness.ci.annotations import github_annotations
    from harness.ci.junit import write_junit
    from harness.ci.step_summary import append_step_summary
    from reports.html import write_report

    junit = junit or folder / JUNIT_NAME
    drawings: list[tuple[str, Path | None, Callable[[], object]]] = [
        ("report", folder / REPORT_NAME, lambda: write_report(record, folder)),
    ]
    if own_junit:
        drawings.append(("junit", junit, lambda: write_junit(record, junit)))
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        drawings.append(("step summary", None, lambda: append_step_summary(record, Path(summary))))
    if environment.get("GITHUB_ACTIONS") == "true":
        drawings.append(("annotations", None, lambda: click.echo("\n".join(github_annotations(record)))))
    written: dict[str, Path] = {}
    for name, path, draw in drawings:
        try:
            draw()
        except Exception as error:  # noqa: BLE001 - the verdict must come out whatever a drawing does
            _not_written(name, path, error)
            if isinstance(error, OSError) and error.errno in FULL:
                _remove(*(path for what, path, _ in drawings if path and what not in written))
                break
            continue
        if path is not None:
            written[name] = path
    return written


def _not_written(name: str, path: Path | None, error: Exception) -> None:
    """Say in one line that a file could not be written, and take an earlier run's away."""
    why = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
    click.echo(f"error: the {name} could not be written: {why}", err=True)
    if path is not None:
        _remove(path)


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)

"""The end of every command that made a record: files for people and for CI, and the exit code under the policy.

The record is written before: trouble with a drawing costs that drawing, never the verdict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from harness.records.record import RunRecord
from harness.verdict import UsageError


def prepare_folder(folder: Path, option: str = "--out") -> Path:
    """Create the output folder, or say why not, before anything else is done.

    Raises:
        UsageError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: {folder} cannot be created ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: {folder} is not writable")
    return folder


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
    from reports.html import REPORT_NAME, write_report

    junit = junit or folder / "junit.xml"
    drawings: list[tuple[str, Path | None, Callable[[], object]]] = [
        ("report", folder / REPORT_NAME, lambda: write_report(record, folder)),
    ]
    if own_junit:
        drawings.append(("junit", junit, lambda: write_junit(record, junit)))
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        drawings.append(("step summary", None, lambda: append_step_summary(record, Path(summary))))
    if environment.get("GITHUB_ACTIONS") == "true":
        drawings.append(("annotations", None, lambda: click.echo("\n".join(github_annotations(record)))))
    written = {}
    for name, path, draw in drawings:
        try:
            draw()
        except Exception as error:  # noqa: BLE001 - the verdict must come out whatever a drawing does
            click.echo(f"error: the {name} could not be written: {type(error).__name__}: {error}", err=True)
            continue
        if path is not None:
            written[name] = path
    return written

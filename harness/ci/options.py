"""The options that every judging command has for CI: `--junit`, `--fail-on`, `--against`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from harness.ci.policy import POLICIES, exit_under
from harness.records.from_json import RecordError
from harness.records.record import RunRecord, load_record
from harness.verdict import ExitCode, UsageError

_PATH = click.Path(path_type=Path)


def ci_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as junit, fail_on and against."""
    return _add(command, "RECORD", "Earlier record, for --fail-on regression.")


def ci_options_of_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command whose `--against` may also be a live server."""
    help_text = "Earlier record, for --fail-on regression; or a live server, asked the same at the same time."
    return _add(command, "RECORD|URL", help_text)


def _add(command: Callable[..., Any], against: str, against_help: str) -> Callable[..., Any]:
    for option in (
        click.option("--against", metavar=against, help=against_help),
        click.option(
            "--fail-on",
            type=click.Choice(list(POLICIES)),
            default="unknown",
            show_default=True,
            help="What makes the exit code say failure: unknown (FAIL and UNKNOWN), fail, or regression.",
        ),
        click.option("--junit", type=_PATH, help="Write JUnit XML here; junit.xml in --out by default."),
    ):
        command = option(command)
    return command


def is_url(against: str | None) -> bool:
    """Return whether the value of --against is a server and not a record."""
    return against is not None and against.lower().startswith(("http://", "https://"))


def earlier_record(fail_on: str, against: str | None) -> RunRecord | None:
    """Return the record given with --against, before anything is run.

    Raises:
        UsageError: it is missing where it is needed, given where it is not, a URL, or cannot be read.
    """
    if is_url(against):
        raise UsageError("--against URL is for harness gsm8k; here --against takes an earlier record.json")
    if (fail_on == "regression") != (against is not None):
        raise UsageError("--fail-on regression and --against RECORD belong together: give both or neither")
    if against is None:
        return None
    try:
        return load_record(Path(against))
    except RecordError as error:
        raise UsageError(f"--against {error}") from None


def exit_with(fail_on: str, record: RunRecord, earlier: RunRecord | None) -> ExitCode:
    """Return the exit code under the policy, and print why where it is not the verdict's own."""
    code, words = exit_under(fail_on, record, earlier)
    if words:
        click.echo(words, err=True)
    return code

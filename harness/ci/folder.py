"""The folder that a command leaves its files in: of one run at a time, and of one command."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from harness.records.command_line import command_line
from harness.verdict import UsageError

RECORD_NAME, REPORT_NAME, JUNIT_NAME = "record.json", "report.html", "junit.xml"
_OVERWRITE = "harness.overwrite"


def output_options(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--out`, which the command gets as `out`, and `--overwrite`, which `own_folder` reads, to a command."""

    def keep(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[_OVERWRITE] = value

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        words = "Write into --out although another command's record is there."
        command = click.option(
            "--overwrite", is_flag=True, expose_value=False, is_eager=True, callback=keep, help=words
        )(command)
        return click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path(default),
            show_default=True,
            help="Folder of record.json and report.html.",
        )(command)

    return add


def own_folder(folder: Path) -> Path:
    """Return the output folder of the running command, made where it was not there, and its own until the command ends.

    Raises:
        UsageError: it cannot be written, another run is writing there, or it holds the record of another command.
    """
    held = held_folder(folder, _words(command_line()), "--overwrite", overwrite=may_overwrite())
    return click.get_current_context().with_resource(held)


def may_overwrite() -> bool:
    """Return whether the running command was given --overwrite."""
    return bool(click.get_current_context().meta.get(_OVERWRITE))


@contextmanager
def held_folder(
    folder: Path, command: Sequence[str], way_out: str, option: str = "--out", *, overwrite: bool = False
) -> Iterator[Path]:
    """Make an output folder and keep other runs out of it for as long as the block lasts.

    Args:
        folder: where the files go.
        command: the first words of the command that writes there.
        way_out: what to give for writing there nonetheless, for the message.
        option: that the folder was given by.
        overwrite: whether another command's files may be replaced.

    Raises:
        UsageError: as for `own_folder`.
    """
    prepare_folder(folder, option)
    with _locked(folder, option):
        other = _other_command(folder / RECORD_NAME, command)
        if other and not overwrite:
            raise UsageError(
                f"{option}: {folder} holds the record of `{other}`; give another folder, or {way_out} to replace it"
            )
        if other:
            for name in (
                RECORD_NAME,
                REPORT_NAME,
                JUNIT_NAME,
            ):  # what this command does not write is not its own
                (folder / name).unlink(missing_ok=True)
        yield folder


def prepare_folder(folder: Path, option: str = "--out") -> Path:
    """Create an output folder, or say why not, before anything else is done.

    Raises:
        UsageError: it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"{option}: {folder} cannot be created ({why})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: {folder} is not writable")
    return folder


@contextmanager
def _locked(folder: Path, option: str) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{option}: another run is writing to {folder}; give another folder") from None
        except OSError as error:
            if error.errno not in {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
                raise
            # Some network file systems lock no folders: runs are not kept apart there.
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # for a process that was forked with it, too
        os.close(handle)


def _words(command: Sequence[str]) -> Sequence[str]:
    """Return the words that say which command it is: `harness check`, `harness canary run`."""
    return command[: 3 if command[1:2] == ["canary"] else 2]


def _other_command(record: Path, command: Sequence[str]) -> str:
    """Return the command that wrote the record in a folder where it is another one, "" where it is not, or there is none."""
    try:
        wrote = json.loads(record.read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""  # what is no record, or a damaged one, is of no use to anybody
    if not isinstance(wrote, list) or wrote[: len(command)] == list(command):
        return ""
    return " ".join(map(str, _words(wrote)))

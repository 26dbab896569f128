"""`python -m harness.capture --out DIR [options] -- COMMAND`: run a command with the taps in all its Python processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from harness.capture.settings import CaptureSettings
from harness.extras import require
from harness.verdict import UsageError


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise UsageError(f"must be whole numbers with commas between, got {text!r}") from None


@click.command("harness.capture", context_settings={"ignore_unknown_options": True})
@click.option("--out", "folder", required=True, metavar="DIR", help="Folder to write into.")
@click.option(
    "--calls", default=256, show_default=True, help="Layers, or stages outside of one, of a process."
)
@click.option("--every", default=1, show_default=True, help="One in so many.")
@click.option("--skip", default=0, show_default=True, help="How many are left out at first.")
@click.option("--megabytes", default=4096, show_default=True, help="Written by a process at most.")
@click.option("--ranks", default="", metavar="N,N", help="Only these ranks. Default: all.")
@click.option(
    "--layers", default="", metavar="N,N", help="Only these layers, in the order they run. Default: all."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(
    folder: str,
    calls: int,
    every: int,
    skip: int,
    megabytes: int,
    ranks: str,
    layers: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND and capture the FP4 MoE calls of every Python process that it starts, for `harness replay`."""
    require("harness capture", "capture")
    try:
        settings = CaptureSettings(folder, calls, every, skip, megabytes, _numbers(ranks), _numbers(layers))
    except ValueError as error:
        raise UsageError(str(error)) from None
    own = Path(__file__).parents[2]
    path = [str(Path(__file__).parent / "injected"), str(own), os.environ.get("PYTHONPATH", "")]
    os.environ.update(settings.environment(), PYTHONPATH=os.pathsep.join(part for part in path if part))
    words = list(command)
    if words[0] == "python":
        words[0] = sys.executable
    sys.stdout.flush()
    try:
        os.execvp(words[0], words)  # noqa: S606 - what the user asked to run
    except OSError as error:
        raise UsageError(f"{words[0]} cannot be run: {error.strerror}") from None


if __name__ == "__main__":
    main()

"""`harness replay`."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import complete
from harness.verdict import ExitCode, Verdict, exit_code, worst

if TYPE_CHECKING:
    from harness.replay.reading import Process
    from harness.replay.replay import Line

KINDS = ("fast", "exact", "real")


@click.command("replay")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--candidate", metavar="NAME", shell_complete=complete.candidates,
    help="Run every captured stage through this one too, and judge both.",
)  # fmt: skip
@click.option(
    "--arithmetic",
    type=click.Choice(KINDS),
    default="fast",
    show_default=True,
    help="Of the captured quantizers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found of every call as JSON.")
@click.option(
    "--export", "exported", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the first illegal call, cut to where it is illegal, as a pytest file.",
)  # fmt: skip
def replay_command(
    folder: Path, candidate: str | None, arithmetic: str, as_json: bool, exported: Path | None
) -> int:
    """Judge what `python -m harness.capture` recorded of a running engine: every stage, on its own input.

    FOLDER is the one that was given to the capture. Prints the first illegal stage of each rank and what explains it.
    """
    from harness.candidates.errors import CandidateStartError
    from harness.faults.named import start_named
    from harness.replay.reading import read_capture
    from harness.replay.replay import export_first, replay

    processes = read_capture(folder)
    started = None
    if candidate is not None:
        try:
            started = start_named(candidate, spared=(KeyboardInterrupt,))
        except CandidateStartError as error:
            click.echo(f"UNKNOWN: {candidate} cannot run here: {error}", err=True)
            return ExitCode.UNKNOWN
    command = f"harness replay {shlex.quote(str(folder))}"
    lines = []
    for line in replay(
        processes, arithmetic=arithmetic, candidate=started, name=candidate or "", command=command
    ):
        lines.append(line)
        if not as_json:
            _show(line)
    verdict, words = _verdict(processes, lines)
    if exported is not None:
        cut = export_first(processes, lines, exported, arithmetic)
        click.echo(f"exported: {exported}, {cut}", err=as_json)
    if as_json:
        click.echo(
            json.dumps({"verdict": verdict, "reason": words, "calls": [_plain(line) for line in lines]})
        )
    else:
        for process in processes:
            if process.torn:
                click.echo(process.torn)
        click.echo(f"{verdict}: {words}")
    return exit_code(verdict)


def _plain(line: Line) -> dict[str, object]:
    return {**asdict(line), "verdict": str(line.verdict)}


def _place(line: Line) -> str:
    layer = "" if line.layer is None else f", layer {line.layer}"
    by = f", by {line.by}" if line.by else ""
    return f"rank {line.rank}{layer}, call {line.call}, {line.stage}{by}"


def _show(line: Line) -> None:
    from harness.diagnosis.telling.words import message_lines

    error = "" if line.error is None else f", rms error {line.error:.2e}"
    said = f": {line.words}" if line.words and line.verdict is not Verdict.PASS else ""
    click.echo(f"  {line.verdict:<8}{_place(line)}: {line.compared:,} elements{error}{said}")
    for words in message_lines(line.diagnosis, 10):
        click.echo(words)


def _verdict(processes: list[Process], lines: list[Line]) -> tuple[Verdict, str]:
    """Return the worst, and one sentence: the first illegal stage, or how much was legal."""
    judged = [line for line in lines if line.compared]
    if not judged:
        return Verdict.UNKNOWN, "nothing of the capture could be judged"
    failed = [line for line in lines if line.verdict is Verdict.FAIL]
    if failed:
        first = failed[0]
        named = [one["title"] for one in first.diagnosis if one.get("fault")]
        return Verdict.FAIL, f"first illegal: {_place(first)}" + (f": {named[0]}" if named else "")
    verdict = worst(line.verdict for line in judged)
    counts = Counter(line.stage for line in judged)
    what = ", ".join(f"{count} {stage}" for stage, count in counts.items())
    ranks = len({process.rank for process in processes})
    return verdict, f"{sum(line.compared for line in judged):,} elements of {what} on {ranks} rank(s)"

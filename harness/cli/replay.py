"""`harness replay`. Parsing and printing only."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.ci.folder import output_options, own_folder
from harness.cli import complete
from harness.records.parts.replay import ReplayedCall, ReplayRun
from harness.verdict import ExitCode, UsageError, exit_code

if TYPE_CHECKING:
    from harness.records.record import RunRecord
    from harness.replay.captured import Process

KINDS = ("fast", "exact", "real")
_FOLDER = click.Path(path_type=Path)


@click.command("replay")
@click.argument("folder", type=_FOLDER)
@click.option(
    "--candidate", metavar="NAME", shell_complete=complete.candidates,
    help="Run every captured stage through this one too, and judge both.",
)  # fmt: skip
@click.option(
    "--baseline", type=_FOLDER, metavar="DIR",
    help="An earlier capture of the same requests: what is not as it was, and what regressed.",
)  # fmt: skip
@click.option(
    "--arithmetic",
    type=click.Choice(KINDS),
    default="fast",
    show_default=True,
    help="Of the captured quantizers.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="DEVICE",
    help="Judge on this one: cuda is faster for large calls.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found of every call as JSON.")
@click.option(
    "--export", "exported", type=_FOLDER, metavar="FILE",
    help="Write the first illegal call, cut to where it is illegal, as a pytest file, and beside it a plain script.",
)  # fmt: skip
@output_options("replay-run")
def replay_command(
    folder: Path,
    candidate: str | None,
    baseline: Path | None,
    arithmetic: str,
    device: str,
    as_json: bool,
    exported: Path | None,
    out: Path,
) -> int:
    """Judge what `python -m harness.capture` recorded of a running engine: every stage, on its own input.

    FOLDER is the one that was given to the capture. Prints the first illegal stage of each rank and what explains it.
    """
    from harness.candidates.errors import CandidateStartError
    from harness.faults.named import start_named
    from harness.records.new import new_record
    from harness.replay.baseline import Baseline
    from harness.replay.reading import read_capture
    from harness.replay.replay import conclude, export_first, replay

    processes = read_capture(folder)
    before = Baseline(read_capture(baseline), arithmetic) if baseline is not None else None
    started = None
    if candidate is not None:
        try:
            started = start_named(candidate, spared=(KeyboardInterrupt,))
        except CandidateStartError as error:
            click.echo(f"UNKNOWN: {candidate} cannot run here: {error}", err=True)
            return ExitCode.UNKNOWN
    made, record, begun = own_folder(out), new_record("", 0), time.monotonic()
    torn = [process.torn for process in processes if process.torn]
    run = ReplayRun(str(folder), str(baseline or ""), arithmetic, _device(processes), torn)
    _require(device)
    options: dict[str, Any] = {
        "arithmetic": arithmetic,
        "candidate": started,
        "name": candidate or "",
        "baseline": before,
        "device": device,
    }
    for call in replay(processes, command=f"harness replay {shlex.quote(str(folder))}", **options):
        run.calls.append(call)
        if not as_json:
            _show(call)
    run.changes.extend(before.changes if before else [])
    record.verdict, record.reason = conclude(run, faulty_changes=before is not None and before.faulty)
    record.seconds, record.replay_run = time.monotonic() - begun, run
    if exported is not None:
        click.echo(f"exported: {export_first(processes, run.calls, exported, arithmetic)}", err=as_json)
    _finish(record, run, made, as_json=as_json)
    return exit_code(record.verdict)


def _finish(record: RunRecord, run: ReplayRun, folder: Path, *, as_json: bool) -> None:
    """Write the record and what is drawn from it, and print what was found."""
    if as_json:
        from harness.ci.outputs import write_record

        write_record(record, folder)
        found = {"verdict": record.verdict, "reason": record.reason, "changes": run.changes}
        click.echo(json.dumps({**found, "calls": [asdict(call) for call in run.calls]}))
        return
    from harness.cli.output import finish

    for words in (*run.torn, *run.changes):
        click.echo(words)
    finish(record, folder)


def _require(device: str) -> None:
    """Raise UsageError where torch has no such device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for CUDA
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from None


def _device(processes: list[Process]) -> str:
    return ", ".join(dict.fromkeys(str(process.header.get("device", "")) for process in processes))


def _show(call: ReplayedCall) -> None:
    from harness.diagnosis.telling.words import message_lines

    figures = "" if call.error is None else f", rms error {call.error:.2e}"
    figures += "" if call.distance is None else f", from the baseline {call.distance:.2e}"
    figures += ", regressed" if call.regressed else ""
    said = f": {call.words}" if call.words else ""
    click.echo(f"  {call.verdict:<8}{call.place}: {call.compared:,} elements{figures}{said}")
    for words in message_lines(call.diagnosis, 10):
        click.echo(words)

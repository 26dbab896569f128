"""`harness canary`: serve, run, export, table. Parsing and printing only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.ci.folder import output_options, own_folder, prepare_folder
from harness.ci.options import ci_options, earlier_record, exit_with
from harness.cli import complete
from harness.cli.parsing import MOST_THREADS, NearestGroup
from harness.extras import require
from harness.verdict import ExitCode, UsageError, exit_code

if TYPE_CHECKING:
    from harness.canary.load import Canary
    from harness.records.parts.canary import CanaryLine
    from harness.records.record import RunRecord

_FOLDER = click.Path(path_type=Path)


def _engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what the MoE layers run through."""
    for option in (
        click.option(
            "--candidate",
            default="bf16",
            show_default=True,
            metavar="NAME",
            shell_complete=complete.candidates,
            help="What the experts run through: bf16, a built-in name, or package.module:attribute.",
        ),
        click.option(
            "--fault",
            "faults",
            multiple=True,
            metavar="NAME",
            shell_complete=complete.faults,
            help="Plant this fault; may be repeated.",
        ),
        click.option(
            "--ranks",
            default=1,
            show_default=True,
            help="Ranks: simulated, or of deepep and eager-gloo real.",
        ),
        click.option(
            "--shard",
            type=click.Choice(["experts", "width"]),
            default="experts",
            show_default=True,
            help="How ranks share the layer: whole experts, or a slice of every expert.",
        ),
        click.option(
            "--transport",
            type=click.Choice(["bf16", "fp8", "nvfp4", "fp8-rounded", "fp8-ue8m0"]),
            default="bf16",
            show_default=True,
            help="What dispatch carries.",
        ),
        click.option("--model", type=_FOLDER, help="Folder of the model. Default: the one that is shipped."),
        click.option(
            "--threads", default=0, show_default=True, help="Threads of torch; 0 for its own choice."
        ),
    ):
        command = option(command)
    return command


@click.group("canary", cls=NearestGroup)
def canary_command() -> None:
    """A small MoE model that solves grade-school word problems through a candidate."""


@canary_command.command("serve")
@_engine_options
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0 for any free one.")
def serve(
    candidate: str,
    faults: tuple[str, ...],
    ranks: int,
    shard: str,
    transport: str,
    model: Path | None,
    threads: int,
    host: str,
    port: int,
) -> int:
    """Serve the canary over the OpenAI API until interrupted; print "listening on URL" once it answers."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must lie between 0 and 65535, got {port}")
    require("harness canary serve", "canary")
    import asyncio

    from aiohttp import web

    from harness.canary.server import make_app

    canary = _load(candidate, faults, ranks, shard, transport, model, threads)
    name = "+".join([candidate, *faults])

    async def main() -> None:
        runner = web.AppRunner(make_app(canary.engine(), f"canary-256/{name}"), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UsageError(f"--port {port}: cannot listen on {host} ({error.strerror})") from error
        address = runner.addresses[0]
        click.echo(f"listening on http://{host}:{address[1]}/v1")
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    asyncio.run(main())
    return ExitCode.PASS


@canary_command.command("run")
@_engine_options
@click.option("--questions", default=200, show_default=True, help="How many of the test set.")
@click.option("--unseen", is_flag=True, help="The problems of families that were never trained on.")
@output_options("canary-run")
@ci_options
def run(
    candidate: str,
    faults: tuple[str, ...],
    ranks: int,
    shard: str,
    transport: str,
    model: Path | None,
    threads: int,
    questions: int,
    unseen: bool,
    out: Path,
    junit: Path | None,
    fail_on: str,
    against: str | None,
) -> int:
    """Answer the canary's questions in this process, judge and report: what serve and gsm8k do, without HTTP."""
    require("harness canary run", "canary")
    from harness.canary.run import run_in_process
    from harness.candidates.errors import in_words
    from harness.cli.output import finish
    from harness.records.new import new_record

    if questions < 1:
        raise UsageError(f"--questions must be at least 1, got {questions}")
    earlier = earlier_record(fail_on, against)
    folder = own_folder(out)
    canary = _load(candidate, faults, ranks, shard, transport, model, threads)
    record, name = new_record("", 0), "+".join([candidate, *faults])
    try:
        record = run_in_process(canary, name, questions=questions, unseen=unseen)
    except KeyboardInterrupt:
        return _interrupted(record, folder, junit)
    except (Exception, SystemExit) as error:
        if candidate == "bf16" or isinstance(error, UsageError):
            raise
        record.reason = f"canary on {name}: no answer: {in_words(error)}"
    finish(record, folder, junit=junit)
    return exit_with(fail_on, record, earlier)


@canary_command.command("table")
@click.option(
    "--candidate", default="eager", show_default=True, metavar="NAME", help="What the faults are planted in."
)
@click.option("--fault", "faults", multiple=True, metavar="NAME", help="Only this fault; may be repeated.")
@click.option(
    "--questions", default=64, show_default=True, help="Questions a line; a dead first wave ends it."
)
@click.option("--jobs", default=1, show_default=True, help="Processes, of one thread each.")
@output_options("canary-table")
def table(candidate: str, faults: tuple[str, ...], questions: int, jobs: int, out: Path) -> int:
    """Measure every fault against the canary's accuracy, beside the rule that kills it; dispatch variants too."""
    require("harness canary table", "canary")
    from harness.canary.table import run_table
    from harness.cli.output import finish
    from harness.records.new import new_record
    from harness.records.parts.canary import CanaryPart
    from harness.verdict import Verdict

    for name, value in (("--questions", questions), ("--jobs", jobs)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    folder = own_folder(out)
    _see_that_it_runs(candidate)
    record = new_record("", 0)
    try:
        lines = run_table(candidate, questions=questions, faults=list(faults), jobs=jobs, progress=_say)
    except KeyboardInterrupt:
        return _interrupted(record, folder)
    record.canary_part = CanaryPart(questions, table=lines)
    wrong = [line.name for line in lines if line.kind == "variant" and line.verdict != "PASS"]
    planted = [line for line in lines if line.kind == "fault" and not line.error]
    seen = sum(line.verdict == "FAIL" for line in planted)
    # What the canary does not see is a finding about the canary, not a failure: the rules kill every fault.
    record.verdict = Verdict.FAIL if wrong else Verdict.PASS
    record.reason = (
        f"right variants that do not pass: {', '.join(wrong) or 'none'}; "
        f"the canary fails {seen} of {len(planted)} planted faults"
    )
    finish(record, folder)
    return exit_code(record.verdict)


def _say(line: CanaryLine) -> None:
    if line.error:
        click.echo(f"  {line.name:<44} {line.error}", err=True)
        return
    killed = f", killed by {line.facts.killed_by}" if line.facts else ""
    click.echo(
        f"  {line.name:<44} {line.accuracy or 0.0:.3f} of {line.asked}, {line.verdict}{killed}, "
        f"{line.seconds or 0.0:.0f} s",
        err=True,
    )


@canary_command.command("export")
@click.argument("folder", type=_FOLDER)
@click.option("--model", type=_FOLDER, help="Folder of the model. Default: the one that is shipped.")
@click.option(
    "--hidden", type=int, help="Hidden size, a power of two times the model's; it computes the same."
)
def export(folder: Path, model: Path | None, hidden: int | None) -> int:
    """Write the canary as an NVFP4 checkpoint in ModelOpt's layout; the same bytes every time."""
    require("harness canary export", "canary")
    from harness.canary.export import export_modelopt

    export_modelopt(prepare_folder(folder, "FOLDER"), model, hidden)
    click.echo(f"checkpoint: {folder}")
    return ExitCode.PASS


def _load(
    candidate: str,
    faults: tuple[str, ...],
    ranks: int,
    shard: str,
    transport: str,
    model: Path | None,
    threads: int,
) -> Canary:
    import torch

    from harness.canary import load_canary

    if ranks < 1:
        raise UsageError(f"--ranks must be at least 1, got {ranks}")
    if not 0 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads must lie between 0 and {MOST_THREADS:,}, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    if candidate == "bf16" and faults:
        raise UsageError("--fault is planted in a candidate: give --candidate (eager, physical, ...) too")
    name = "+".join([candidate, *faults])
    if candidate != "bf16":
        _see_that_it_runs(name)
    return load_canary(model, candidate=name, ranks=ranks, shard=shard, transport=transport)


def _see_that_it_runs(name: str) -> None:
    """End the command with UNKNOWN where a candidate cannot run here. Raises UsageError where there is none."""
    from harness.candidates.errors import CandidateStartError
    from harness.faults.named import start_named

    try:
        start_named(name, spared=(KeyboardInterrupt,))
    except CandidateStartError as error:
        click.echo(f"UNKNOWN: {name} cannot run here: {error}", err=True)
        raise click.exceptions.Exit(ExitCode.UNKNOWN) from None


def _interrupted(record: RunRecord, folder: Path, junit: Path | None = None) -> ExitCode:
    from harness.cli.output import finish

    record.interrupted, record.reason = True, "interrupted"
    finish(record, folder, junit=junit)
    return ExitCode.INTERRUPTED

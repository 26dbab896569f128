"""`harness compile`: parsing and printing only. The work is `harness.compile.run`."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.ci.folder import output_options, own_folder, prepare_folder
from harness.compile.run import Progress
from harness.terminal import LiveLine
from harness.verdict import ExitCode, UsageError, exit_code

if TYPE_CHECKING:
    from harness.compile.baseline import Baseline
    from harness.compile.case import CompileCase
    from harness.compile.matrix import Entry
    from harness.compile.run import CompileOutcome, CompileRequest
    from harness.records.parts.compile import CompileResult

_PATH = click.Path(path_type=Path)


@click.command("compile")
@click.option(
    "--arch",
    "architectures",
    multiple=True,
    metavar="NAME",
    help="sm_100a or sm_103a; may be repeated. Default: both.",
)
@click.option("--kernel", "kernels", multiple=True, metavar="NAME", help="Only this kernel; may be repeated.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="WORD",
    help="Only cases whose origin has this word: a model's name, variant, edge, cluster, drawn, guard, ...; may be repeated.",
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    metavar="CASE",
    help="Only this case, as the report prints it, in the matrix or not; may be repeated.",
)
@click.option("--list", "only_list", is_flag=True, help="Print the selected cases and compile nothing.")
@click.option("--jobs", type=int, default=0, show_default="one a core", help="Compilers at once.")
@click.option("--timeout", type=float, default=300.0, show_default=True, help="Seconds for one case.")
@click.option(
    "--baseline", type=_PATH, help="Compare with this file. Default: the one shipped with the harness."
)
@click.option("--no-baseline", is_flag=True, help="Compare with nothing.")
@click.option("--write-baseline", type=_PATH, metavar="PATH", help="Store the results as a baseline.")
@click.option(
    "--cache",
    type=_PATH,
    help="Folder of earlier results. Default: fp4-moe-harness/compile in the user's cache.",
)
@click.option("--fresh", is_flag=True, help="Compile everything again, whatever the cache has.")
@click.option("--keep", type=_PATH, metavar="FOLDER", help="Write every PTX and cubin there.")
@output_options("compile-run")
def compile_command(
    architectures: tuple[str, ...],
    kernels: tuple[str, ...],
    origins: tuple[str, ...],
    cases: tuple[str, ...],
    only_list: bool,
    jobs: int,
    timeout: float,
    baseline: Path | None,
    no_baseline: bool,
    write_baseline: Path | None,
    cache: Path | None,
    fresh: bool,
    keep: Path | None,
    out: Path,
) -> int:
    """Compile FlashInfer's CuTe DSL kernels for Blackwell, on any machine, and compare with a baseline.

    Exits 0 when everything compiles or is refused as in the baseline, 1 when a case broke, spills, needs more shared memory
    than there is, takes twice as long, or compiles although it must be refused; 2 when nothing could be compiled.
    """
    from harness.compile.cache import default_folder
    from harness.compile.run import CompileRequest

    if jobs < 0 or not timeout > 0:
        raise UsageError("--jobs must not be negative, --timeout must be positive")
    if baseline is not None and no_baseline:
        raise UsageError("--baseline and --no-baseline exclude each other")
    entries = select(architectures, kernels, origins, cases)
    whole = not (architectures or kernels or origins or cases)
    if write_baseline is not None and write_baseline.exists() and not whole:
        raise UsageError(
            f"--write-baseline: a part of the matrix would take the place of all of {write_baseline}; "
            "leave the selection out, or write to a new file"
        )
    if only_list:
        for entry in entries:
            click.echo(f"{entry.case}  ({entry.origin})")
        return ExitCode.PASS
    earlier = None if no_baseline else _earlier(baseline)
    folder = own_folder(out)
    request = CompileRequest(
        entries=entries,
        jobs=jobs or len(os.sched_getaffinity(0)),
        timeout=timeout,
        cache=cache or default_folder(),
        baseline=earlier,
        baseline_name=str(baseline) if baseline else "the shipped baseline",
        keep=None if keep is None else prepare_folder(keep, "--keep").resolve(),
        fresh=fresh,
        whole=whole,
    )
    return _run(request, folder, write_baseline)


def _earlier(path: Path | None) -> Baseline | None:
    """Return the baseline to compare with: the given one, or the shipped one where there is one."""
    from harness.compile.baseline import SHIPPED, load_baseline

    return load_baseline(path or SHIPPED) if path is not None or SHIPPED.exists() else None


def _run(request: CompileRequest, folder: Path, write_baseline: Path | None) -> int:
    """Compile, store the baseline that was asked for, write record and report, and return the exit code."""
    from harness.compile.run import run_compile

    started = time.monotonic()
    outcome = run_compile(request, TerminalProgress())
    _report(outcome, folder, time.monotonic() - started)
    if write_baseline is not None:
        _store(write_baseline, request, outcome)
    return ExitCode.INTERRUPTED if outcome.interrupted else exit_code(outcome.verdict)


def select(
    architectures: tuple[str, ...], kernels: tuple[str, ...], origins: tuple[str, ...], cases: tuple[str, ...]
) -> list[Entry]:
    """Return the cases that the options ask for.

    Raises:
        UsageError: a name that does not exist, or options that leave nothing.
    """
    from harness.compile.case import ARCHITECTURES, KERNELS, parse_case
    from harness.compile.matrix import Entry, matrix

    for given, known, what in ((architectures, ARCHITECTURES, "--arch"), (kernels, KERNELS, "--kernel")):
        if wrong := [name for name in given if name not in known]:
            raise UsageError(f"{what} must be one of {', '.join(known)}, got {wrong[0]!r}")
    entries = matrix(architectures or ARCHITECTURES)
    if cases:
        if kernels or origins:
            raise UsageError("--case names its kernel; leave --kernel and --origin out")
        known_entries = {entry.case: entry for entry in matrix()}
        wanted = dict.fromkeys(map(parse_case, cases))
        return [known_entries.get(case, Entry(case, "asked for")) for case in wanted]
    found = [
        entry
        for entry in entries
        if (not kernels or entry.case.kernel in kernels)
        and (not origins or any(word in entry.origin for word in origins))
    ]
    if not found:
        words = sorted({entry.origin.partition(",")[0].split()[0] for entry in entries})
        raise UsageError(f"no case is left by these options; origins are {', '.join(words)}")
    return found


def _store(path: Path, request: CompileRequest, outcome: CompileOutcome) -> None:
    """Write a baseline, if no case is missing."""
    from harness.compile.baseline import Baseline, write_baseline

    if not outcome.results or len(outcome.results) < len(request.entries):
        have = f"{len(outcome.results)} of {len(request.entries)} cases have a result"
        click.echo(f"harness: no baseline is written: {have}", err=True)
        return
    results = {str(entry.case): result for entry, result in outcome.results.items()}
    made = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    write_baseline(path, Baseline(outcome.packages.versions, made, results))
    click.echo(f"baseline: {path}")


def _report(outcome: CompileOutcome, folder: Path, seconds: float) -> None:
    from harness.cli.output import finish
    from harness.records.command_line import command_line
    from harness.records.environment import describe_environment
    from harness.records.record import RunRecord
    from harness.version import __version__

    now = dt.datetime.now(dt.UTC)
    record = RunRecord(
        run_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        created=now.isoformat(timespec="seconds"),
        command=command_line(),
        verdict=outcome.verdict,
        reason=outcome.reason,
        harness_version=__version__,
        seconds=round(seconds, 1),
        interrupted=outcome.interrupted,
        environment=describe_environment(devices=False),
    )
    part = outcome.part
    record.compile_run = part
    for change in part.changes:
        mark = click.style("FAIL  ", fg="red") if change.bad else "      "
        click.echo(f"{mark}{change.case}: {change.kind}: {change.text}")
    if part.warning:
        click.echo(f"harness: {part.warning}", err=True)
    click.echo(
        f"{len(outcome.results)} cases, {part.cached} of them from the cache, "
        f"{part.seconds:.0f} s, {part.cpu_seconds:.0f} s of CPU time in the compilers"
    )
    finish(record, folder)


class TerminalProgress(Progress):
    """One line that is updated on a terminal; elsewhere a line for every tenth of the cases, and for each failure."""

    def __init__(self) -> None:
        self._live = LiveLine()
        self._tenth = 0

    def cached(self, found: int, total: int) -> None:
        """Say how much there is to do."""
        click.echo(f"{total} cases, {found} known from the cache, {total - found} to compile", err=True)

    def finished(self, done: int, total: int, case: CompileCase, result: CompileResult) -> None:
        """Say how far it is."""
        if result.status not in {"compiled", "refused"}:
            self._live.clear()
            click.echo(f"{result.status}: {case}: {result.reason}", err=True)
        if self._live.on and done < total:
            self._live.show(f"{done}/{total} {case}")
            return
        self._live.clear()
        if done * 10 // total > self._tenth or done == total:
            self._tenth = done * 10 // total
            click.echo(f"{done}/{total}", err=True)

    def again(self, cases: int) -> None:
        """Say why it takes longer."""
        click.echo(f"{cases} cases seem slower than in the baseline: measuring again", err=True)

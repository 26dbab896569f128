"""`harness reproduce`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click

from harness.ci.folder import may_overwrite, output_options
from harness.cli import complete
from harness.cli.failures import failures_of
from harness.records.record import Failure
from harness.records.whole_files import write_whole
from harness.verdict import ExitCode, UsageError

KEEP_SECONDS = 120.0
SCRIPT_SECONDS = 120.0


@click.command("reproduce")
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--failure",
    "number",
    default=0,
    metavar="N",
    help="Which failure, of those that --rule and --candidate leave; default: the first that is not a known one.",
)
@click.option("--rule", metavar="ID", shell_complete=complete.rules, help="Only failures of this rule.")
@click.option(
    "--candidate", metavar="NAME", shell_complete=complete.candidates, help="Only failures of this candidate."
)
@click.option(
    "--script",
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Write the failing problem as a plain script, and its tensors as FILE.pt, instead of judging it again.",
)
@output_options("reproduce-run")
def reproduce_command(
    record: Path, number: int, rule: str | None, candidate: str | None, script: Path | None, out: Path
) -> int:
    """Repeat a failure of RECORD, a record.json or the folder of one, as its reproduce line does.

    With --script the failing stage call becomes a Python script that needs torch and the candidate only: for
    compute-sanitizer, for cuda-gdb, for a bug report. It is run once to see that it shows the failure: exit 0, or 2 where
    it does not.
    """
    failure = _chosen(record, number, rule, candidate)
    if script is not None:
        return _write_script(failure, script)
    from harness.cli.check import check_command
    from harness.running.failure import reproduce_command as line_of

    line = line_of(failure.rule, failure.candidate, failure.problem)
    click.echo(line, err=True)
    colour = click.get_current_context().color
    arguments = [*shlex.split(line)[2:], "--out", str(out), *(["--overwrite"] if may_overwrite() else [])]
    result: int = check_command.main(arguments, "harness check", standalone_mode=False, color=colour)
    return result


def _chosen(file: Path, number: int, rule: str | None, candidate: str | None) -> Failure:
    """Return the failure that is asked for. Raises UsageError where there is none."""
    failures = failures_of(file)
    left = [
        failure
        for failure in failures
        if rule in {None, failure.rule, failure.rule.lower()} and candidate in {None, failure.candidate}
    ]
    if not left:
        there = (
            ", ".join(dict.fromkeys(f"{f.rule} on {f.candidate}" for f in failures)) or "no failure at all"
        )
        raise UsageError(f"{file} has no such failure; it has {there}")
    if not 0 <= number <= len(left):
        raise UsageError(f"--failure must be 1 to {len(left)}, got {number}")
    return left[number - 1] if number else next((f for f in left if f.kind != "known"), left[0])


def _write_script(failure: Failure, script: Path) -> int:
    from harness.candidates.errors import CandidateStartError
    from harness.reproduction.script import script_text

    if script.suffix != ".py" or not script.parent.is_dir():
        raise UsageError(f"--script must be a file FILE.py in a folder that exists, got {script}")
    tensors = script.with_suffix(".pt")
    try:
        why_not = _keep(failure, tensors)
    except CandidateStartError as error:
        click.echo(f"{failure.candidate} cannot run here: {error}", err=True)
        return ExitCode.UNKNOWN
    if why_not:
        raise UsageError(
            f"there is no script for this failure: {why_not}. Repeat it with: {failure.reproduce}"
        )
    shown, said = False, ""
    for warm in (False, True):  # what went before matters where a candidate remembers it
        write_whole(script, script_text(failure, script.name, warm=warm))
        shown, said = _shows(script, failure.kind)
        if shown:
            break
    click.echo(f"script: {script}")
    click.echo(f"tensors: {tensors}")
    click.echo(f"run once: {said}")
    if not shown:
        click.echo(
            "The failure did not show in it: it may come now and then, or need more than these calls.",
            err=True,
        )
    return ExitCode.PASS if shown else ExitCode.UNKNOWN


def _keep(failure: Failure, tensors: Path) -> str:
    """Have the failing calls written; return why they are not, or ""."""
    from harness.running.outcome import Status
    from harness.running.session import Child

    tensors.unlink(missing_ok=True)
    session = Child(failure.candidate)
    try:
        # A call that ends the process must be on the disk before it is made.
        for before_each in (failure.kind in {"crash", "timeout"}, True):
            outcome = session.keep_calls(
                failure.rule, failure.problem, tensors, KEEP_SECONDS, before_each=before_each
            )
            if not outcome.lost or tensors.exists():
                break
    finally:
        session.close()
    if outcome.status is Status.INTERNAL:
        raise RuntimeError(outcome.error)
    return "" if tensors.exists() else outcome.error


def _shows(script: Path, kind: str) -> tuple[bool, str]:
    """Run a script once; return whether it shows the failure, and what it ended with."""
    try:
        done = subprocess.run(  # noqa: S603 - what was just written
            [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=SCRIPT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return True, f"no end within {SCRIPT_SECONDS:g} s"
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
    named = kind != "illegal" or lines[-1].endswith(
        " wrong"
    )  # an error on the way there is no illegal element
    return done.returncode != 0 and named, f"exit {done.returncode}, {lines[-1]}"

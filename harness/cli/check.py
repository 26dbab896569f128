"""`harness check`."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.ci.folder import output_options, own_folder
from harness.ci.options import ci_options, earlier_record, exit_with
from harness.cli import complete
from harness.cli.output import TerminalProgress, finish
from harness.cli.parsing import MOST_THREADS
from harness.cli.sharing import sharing_options
from harness.problems.problem import Problem, parse_problem
from harness.problems.profiles import Profile
from harness.verdict import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.records.record import RunRecord
    from harness.running.check import CheckRequest
    from harness.running.shared.asked import AskedSharing

_MOST = {"threads": MOST_THREADS, "max_memory": 1 << 20}  # GiB: an address space has no more


@click.command("check")
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="NAME",
    shell_complete=complete.candidates,
    help="Built-in name or package.module:attribute; may be repeated. Default: every built-in one that can run here.",
)
@click.option(
    "--modes",
    metavar="MODES",
    help="Each candidate in all of its modes, 'all', or in some, with commas between: NAME:MODE each. Default: its first.",
)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="ID",
    shell_complete=complete.rules,
    help="Only this rule; may be repeated. Default: all.",
)
@click.option(
    "--profile",
    default="quick",
    show_default=True,
    metavar="NAME",
    shell_complete=complete.profiles,
    help="quick, standard or deep.",
)
@click.option("--problem", metavar="STRING", help="Judge only this problem, as a failure printed it.")
@click.option(
    "--shapes",
    metavar="MODEL",
    shell_complete=complete.shapes,
    help="Shapes of a real model: a name (harness list) or the path of a config.json.",
)
@click.option("--ep", default=1, show_default=True, help="Ranks that share the experts, with --shapes.")
@click.option("--seed", default=0, show_default=True, help="Of the drawn problems.")
@click.option(
    "--max-seconds",
    default=0.0,
    show_default=True,
    help="Draw no further problem after this time, from the first problem on; 0 for no limit.",
)
@click.option(
    "--problem-seconds",
    default=0.0,
    metavar="S",
    help="A problem that takes longer is slow: UNKNOWN. A candidate hangs, which is a FAIL, after 10 times as much "
    "processor time, or after S seconds idle. Default: the profile's.",
)
@click.option(
    "--max-memory",
    default=0.0,
    show_default=True,
    metavar="GIB",
    help="Limit of a candidate's process; 0 for none.",
)
@sharing_options
@click.option("--threads", default=0, show_default=True, help="Threads of torch; 0 for its own choice.")
@click.option(
    "--isolate/--no-isolate",
    default=True,
    show_default=True,
    help="Run each candidate in a process of its own, so that a crash costs one problem.",
)
@click.option(
    "--canary/--no-canary",
    default=None,
    help="Ask the canary its questions through each candidate. Default: yes, unless --rule, --problem, --shapes or "
    "--max-seconds asks for a part, and where the extra [canary] is installed.",
)
@click.option("--canary-questions", type=int, help="How many of its 500. Default: the profile's.")
@click.option(
    "--canary-control",
    default="input_scale_inverted",
    show_default=True,
    metavar="FAULT",
    shell_complete=complete.faults,
    help="Fault planted in the first candidate, on which the canary must fail; '' for none.",
)
@click.option(
    "--known-failures",
    type=click.Path(path_type=Path),
    help="List of known failures. Default: the one of the suites.",
)
@click.option(
    "--history",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Folder of earlier runs: the report says since when its first failure is there.",
)
@output_options("harness-out")
@ci_options
def check_command(
    candidates: tuple[str, ...],
    modes: str | None,
    rules: tuple[str, ...],
    profile: str,
    problem: str | None,
    shapes: str | None,
    ep: int,
    seed: int,
    max_seconds: float,
    problem_seconds: float,
    max_memory: float,
    threads: int,
    isolate: bool,
    canary: bool | None,
    canary_questions: int | None,
    canary_control: str,
    known_failures: Path | None,
    sharing: AskedSharing,
    history: Path | None,
    out: Path,
    junit: Path | None,
    fail_on: str,
    against: str | None,
) -> int:
    """Run the rules on candidates and write record.json, report.html and junit.xml."""
    from harness.problems.shapes import find_shape
    from harness.records.new import new_record
    from harness.rules import find_rules
    from harness.running.check import CheckRequest
    from harness.running.known_failures import default_path, load_known_failures

    _refuse_unfit_shapes(shapes, ep, problem)
    given = {"max_seconds": max_seconds, "max_memory": max_memory, "threads": threads, "seed": seed}
    refuse_outside(**given, problem_seconds=problem_seconds)
    size = profile_with(profile, problem_seconds)
    a_part = bool(rules or problem is not None or shapes or max_seconds)
    request = CheckRequest(
        candidates=in_modes(candidates, modes),
        rules=find_rules(list(rules)),
        profile=size,
        seed=seed,
        problem=None if problem is None else judgeable(problem, max_memory),
        shape=None if shapes is None else find_shape(shapes, ep),
        max_seconds=max_seconds,
        memory_gib=max_memory,
        threads=threads,
        isolate=isolate,
        known=load_known_failures(known_failures or default_path()),
        all_rules=not rules,
        canary=_questions(canary, canary_questions, size.canary, a_part=a_part),
        canary_named=bool(canary) or canary_questions is not None,
        canary_control=canary_control,
        sharing=sharing,
    )
    earlier, folder, record = earlier_record(fail_on, against), own_folder(out), new_record(profile, seed)
    run_and_report(request, record, folder, junit, history)
    return ExitCode.INTERRUPTED if record.interrupted else exit_with(fail_on, record, earlier)


def in_modes(candidates: Sequence[str], modes: str | None) -> list[str]:
    """Return the names of the candidates that are judged. Raises UsageError where one has not the modes asked for."""
    from harness.candidates import candidate_modes
    from harness.candidates.modes import names_in_modes

    if modes is None:
        return list(candidates)
    if not candidates:
        raise UsageError("--modes says in which of its modes a candidate is judged; give --candidate as well")
    return [each for name in candidates for each in names_in_modes(name, candidate_modes(name), modes)]


def _refuse_unfit_shapes(shapes: str | None, ep: int, problem: str | None) -> None:
    if shapes is None and ep != 1:
        raise UsageError("--ep says how many ranks share the experts of --shapes; give both")
    if shapes is not None and problem is not None:
        raise UsageError("--problem names its own shape; give it without --shapes")


def profile_with(name: str, problem_seconds: float) -> Profile:
    """Return the profile of that name, with that limit of a problem unless it is 0."""
    from harness.problems.profiles import find_profile

    profile = find_profile(name)
    return replace(profile, problem_seconds=problem_seconds or profile.problem_seconds)


def run_and_report(
    request: CheckRequest, record: RunRecord, folder: Path, junit: Path | None, history: Path | None = None
) -> None:
    """Run and leave record and report, also where the run is interrupted or ended by an error, which is raised."""
    from harness.ci.outputs import write_record
    from harness.cli.report import draw_with_past
    from harness.running.check import run_check
    from harness.running.conclusion import conclude

    try:
        with contextlib.suppress(KeyboardInterrupt):  # what was found until then is in the record
            run_check(request, record, TerminalProgress())
    except Exception as error:
        if isinstance(error, UsageError):
            record.candidates[-1].reason = str(error)
        else:
            record.errors.append(f"{type(error).__name__}: {error}")
        if record.rules or record.errors:
            conclude(record, {})
            write_record(record, folder, junit=junit)
        raise
    finish(record, folder, junit=junit)
    if history is not None:
        draw_with_past(record, folder, history)


def _questions(asked: bool | None, questions: int | None, usual: int, *, a_part: bool) -> int:
    """Return how many questions the canary gets: by default none where only a part of a run is asked for."""
    if questions is not None and not 1 <= questions <= 500:
        raise UsageError(f"--canary-questions must lie between 1 and 500, got {questions}")
    if asked is None:
        asked = questions is not None or not a_part
    return (questions or usual) if asked else 0


def refuse_outside(**values: float) -> None:
    """Refuse values of options that cannot be meant. Raises UsageError."""
    for name, value in values.items():
        option, most = f"--{name.replace('_', '-')}", _MOST.get(name, math.inf)
        if not value >= 0:  # NaN too
            raise UsageError(f"{option} must not be negative, got {value}")
        if value > most:
            raise UsageError(f"{option} must be at most {most:,}, got {value:g}")


def judgeable(text: str, limit_gib: float) -> Problem:
    """Return the problem of a command line. Raises UsageError where it is none, or no memory here can hold it."""
    problem = parse_problem(text)
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most, whose = (limit_gib * 2**30, "--max-memory allows") if limit_gib else (here, "this machine has")
    if problem.least_bytes > most:
        raise UsageError(
            f"problem: {text} needs at least {_gib(problem.least_bytes)} for its tensors, {whose} {_gib(most)}"
        )
    return problem


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**27 else f"{size:,.0f} bytes"

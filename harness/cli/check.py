"""`harness check`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import click

from harness.ci.options import ci_options, earlier_record, exit_with
from harness.ci.outputs import prepare_folder
from harness.cli import complete
from harness.cli.output import TerminalProgress, print_summary
from harness.problems.profiles import Profile
from harness.records.record import RunRecord
from harness.verdict import ExitCode, UsageError


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
    "--out",
    type=click.Path(path_type=Path),
    default=Path("harness-out"),
    show_default=True,
    help="Folder of record.json and report.html.",
)
@ci_options
def check_command(
    candidates: tuple[str, ...],
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
    out: Path,
    junit: Path | None,
    fail_on: str,
    against: str | None,
) -> int:
    """Run the rules on candidates and write record.json, report.html and junit.xml."""
    from harness.problems.problem import parse_problem
    from harness.problems.shapes import find_shape
    from harness.records.new import new_record
    from harness.rules import find_rules
    from harness.running.check import CheckRequest, run_check
    from harness.running.known_failures import default_path, load_known_failures

    if shapes is None and ep != 1:
        raise UsageError("--ep says how many ranks share the experts of --shapes; give both")
    _refuse_negative(max_seconds=max_seconds, max_memory=max_memory, threads=threads, seed=seed)
    size, a_part = _profile(profile, problem_seconds), bool(rules or problem or shapes or max_seconds)
    request = CheckRequest(
        candidates=list(candidates),
        rules=find_rules(list(rules)),
        profile=size,
        seed=seed,
        problem=parse_problem(problem) if problem else None,
        shape=find_shape(shapes, ep) if shapes else None,
        max_seconds=max_seconds,
        memory_gib=max_memory,
        threads=threads,
        isolate=isolate,
        known=load_known_failures(known_failures or default_path()),
        all_rules=not rules,
        canary=_questions(canary, canary_questions, size.canary, a_part=a_part),
        canary_named=bool(canary) or canary_questions is not None,
        canary_control=canary_control,
    )
    earlier = earlier_record(fail_on, against)
    folder = prepare_folder(out)
    record = new_record(profile, seed)
    with contextlib.suppress(KeyboardInterrupt):  # what was found until then is in the record
        run_check(request, record, TerminalProgress())
    _write(record, folder, junit)
    return ExitCode.INTERRUPTED if record.interrupted else exit_with(fail_on, record, earlier)


def _profile(name: str, problem_seconds: float) -> Profile:
    """Return the profile of that name, with that limit of a problem unless it is 0."""
    from harness.problems.profiles import find_profile

    _refuse_negative(problem_seconds=problem_seconds)
    profile = find_profile(name)
    return replace(profile, problem_seconds=problem_seconds or profile.problem_seconds)


def _questions(asked: bool | None, questions: int | None, usual: int, *, a_part: bool) -> int:
    """Return how many questions the canary gets: by default none where only a part of a run is asked for."""
    if questions is not None and not 1 <= questions <= 500:
        raise UsageError(f"--canary-questions must lie between 1 and 500, got {questions}")
    if asked is None:
        asked = questions is not None or not a_part
    return (questions or usual) if asked else 0


def _refuse_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:  # NaN too
            raise UsageError(f"--{name.replace('_', '-')} must not be negative, got {value}")


def _write(record: RunRecord, folder: Path, junit: Path | None) -> None:
    from harness.ci.outputs import write_outputs

    record.write(folder / "record.json")
    print_summary(record, {"record": folder / "record.json", **write_outputs(record, folder, junit=junit)})

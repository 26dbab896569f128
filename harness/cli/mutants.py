"""`harness mutants`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.ci.folder import output_options, own_folder
from harness.cli import complete
from harness.cli.output import finish
from harness.records.parts.mutants import NOT_JUDGED, NOT_PLANTED, SURVIVED, MutantsRun, UpstreamTable
from harness.records.record import RunRecord
from harness.terminal import LiveLine, Remaining, duration
from harness.verdict import ExitCode, UsageError, Verdict, exit_code

if TYPE_CHECKING:
    from harness.mutants.run import MutantsRequest

_EXAMPLES = """
\b
Examples:
  harness mutants                                     the whole catalog around `physical`
  harness mutants --candidate my.kernels:Moe          the same faults around your own kernel
  harness mutants --category gemm --seeds 20          one category, more random parameterisations
  harness mutants --fault alpha_of_neighbour          one fault
  harness mutants --matrix --out out/matrix           every fault x every rule, smallest problems
  harness mutants --controls --examples 10000         false alarms: every rule on candidates that are right
  harness mutants --self-test                         checks without power must be found out
"""


@click.command("mutants", epilog=_EXAMPLES)
@click.option(
    "--candidate",
    default="physical",
    show_default=True,
    metavar="NAME",
    shell_complete=complete.candidates,
    help="Built-in name or package.module:attribute; it has to be right, the faults are planted in it.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="NAME",
    shell_complete=complete.faults,
    help="Only this fault; may be repeated. Default: all.",
)
@click.option(
    "--category",
    "categories",
    multiple=True,
    metavar="NAME",
    help="Only faults of this category; may be repeated.",
)
@click.option(
    "--seeds",
    default=5,
    show_default=True,
    help="Random parameterisations of each fault, besides everywhere and weakest.",
)
@click.option(
    "--profile",
    default="standard",
    show_default=True,
    metavar="NAME",
    shell_complete=complete.profiles,
    help="Problems are drawn with: quick, standard or deep.",
)
@click.option("--seed", default=0, show_default=True, help="Of the drawn problems.")
@click.option(
    "--matrix", is_flag=True, help="Judge every fault by every rule, and shrink one problem a fault."
)
@click.option(
    "--upstream/--no-upstream",
    default=True,
    show_default=True,
    help="Judge the faults by the criteria of other projects as well.",
)
@click.option(
    "--max-seconds", default=0.0, show_default=True, help="Judge nothing after this time; 0 for no limit."
)
@click.option(
    "--jobs", default=2, show_default=True, help="Processes, each with one thread; 1 judges in this one."
)
@click.option("--controls", is_flag=True, help="Count false alarms over candidates that are right instead.")
@click.option(
    "--examples",
    default=10_000,
    show_default=True,
    help="Of --controls: one rule on one problem for one control.",
)
@click.option("--self-test", is_flag=True, help="See whether broken checks are found out instead.")
@output_options("mutants-run")
def mutants_command(
    candidate: str,
    faults: tuple[str, ...],
    categories: tuple[str, ...],
    seeds: int,
    profile: str,
    seed: int,
    matrix: bool,
    upstream: bool,
    max_seconds: float,
    jobs: int,
    controls: bool,
    examples: int,
    self_test: bool,
    out: Path,
) -> int:
    """Plant every known fault and see whether the rule it names kills it.

    Each fault is planted everywhere, at its weakest, and with random parameters, in a candidate that is right. The problems
    are those that the named rule draws. Exit codes: 0 all killed, 1 survivors, 2 nothing or not everything could be judged.
    """
    from harness.problems.profiles import find_profile

    for name, value, least in (
        ("--seeds", seeds, 0), ("--seed", seed, 0), ("--max-seconds", max_seconds, 0), ("--jobs", jobs, 1),
    ):  # fmt: skip
        if not value >= least:  # NaN too
            raise UsageError(f"{name} must be at least {least}, got {value}")
    find_profile(profile)
    if examples < 1:
        raise UsageError(f"--examples must be at least 1, got {examples}")
    folder = own_folder(out)
    if controls or self_test:
        from harness.cli.mutants_checks import run_checks

        return run_checks(
            controls=controls, self_test=self_test, examples=examples, seed=seed, jobs=jobs,
            max_seconds=max_seconds, folder=folder,
        )  # fmt: skip
    from harness.mutants.run import MutantsRequest

    request = MutantsRequest(
        candidate, faults, categories, seeds, profile, seed, matrix, upstream, max_seconds, jobs
    )
    return _run(request, folder)


def _run(request: MutantsRequest, folder: Path) -> int:
    """Run a request, write record and report, print, and return the exit code."""
    from harness.candidates.errors import CandidateStartError
    from harness.mutants.run import run_mutants
    from harness.records.new import new_record

    record = new_record(request.profile, request.seed)
    record.mutants_run = MutantsRun()
    try:
        record.verdict = run_mutants(request, record, _Progress())
        record.reason = reason(record.mutants_run)
    except CandidateStartError as error:
        record.mutants_run, record.verdict = None, Verdict.UNKNOWN
        record.reason = f"{request.candidate} cannot run here: {error}"
    except KeyboardInterrupt:
        record.interrupted, record.reason = True, "interrupted"
        _finish(record, folder)
        return ExitCode.INTERRUPTED
    _finish(record, folder)
    return exit_code(record.verdict)


def reason(found: MutantsRun) -> str:
    """Return the one sentence that sums up a finished run."""
    score = found.score
    names = ", ".join(fault.name for fault in found.faults if fault.status == SURVIVED)
    if names:
        return f"{score.survived} of {score.faults - score.not_planted} planted faults survive: {names}"
    if score.not_judged:
        first = next(fault for fault in found.faults if fault.status == NOT_JUDGED)
        return f"{score.not_judged} planted faults could not be judged; {first.name}: {first.reason}"
    if not score.killed:
        return (
            f"none of {score.faults} faults could be planted: {found.faults[0].reason}"
            if score.faults
            else "no fault was chosen"
        )
    return (
        f"all {score.killed} planted faults killed, in all {score.plantings} forms; "
        f"median {score.median_examples or 0:g} examples to the kill"
    )


def _finish(record: RunRecord, folder: Path) -> None:
    found = record.mutants_run
    record.seconds = found.seconds if found else 0.0
    if found and found.faults:
        _print(found)
    finish(record, folder)


def _print(found: MutantsRun) -> None:
    """Print what survived first, then the figures."""
    for result in found.survivors:
        click.secho(f"survived: {result.planting} under {result.rule}, {result.examples} problems", fg="red")
    reasons: dict[str, list[str]] = {}
    for fault in found.faults:
        if fault.status in {NOT_JUDGED, NOT_PLANTED}:
            reasons.setdefault(f"{fault.status}, {fault.reason}", []).append(fault.name)
    for why, names in reasons.items():
        click.echo(f"{why}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''} ({len(names)})")
    for failure in found.candidate_failures[:5]:
        click.echo(f"the candidate itself fails {failure.rule} on {failure.problem}: {failure.message}")
    score = found.score
    if score.plantings:
        kills = ""
        if score.plantings_killed:
            kills = (
                f"; examples to the kill: median {score.median_examples or 0:g}, most {score.most_examples}; "
                f"seconds: median {score.median_seconds or 0:.3f}"
            )
        click.echo(
            f"killed {score.plantings_killed} of {score.plantings} plantings of "
            f"{score.killed + score.survived} faults{kills}; {found.seconds:.0f} s in all"
        )
    if found.matrix:
        click.echo(f"rules that kill nothing: {', '.join(found.matrix.powerless) or 'none'}")
    if found.upstream:
        _print_upstream(found.upstream)


def _print_upstream(table: UpstreamTable) -> None:
    click.echo(
        f"criteria of other projects, of {len(table.faults)} faults missed everywhere / at their weakest:"
    )
    width = max(len(criterion.name) for criterion in table.criteria)
    for criterion in table.criteria:
        missed = [len(criterion.missed[case]) for case in table.cases]
        fair = "" if all(criterion.accepts_candidate.values()) else "  (rejects the healthy candidate too)"
        click.echo(f"  {criterion.name:<{width}}  {missed[0]:>4} / {missed[1]:<4}{fair}")


class _Progress:
    """One line on a terminal, updated in place, with the time left of this kind of work; elsewhere one line for each kind."""

    def __init__(self) -> None:
        self._live = LiveLine()
        self._what = ""
        self._remaining = Remaining()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what, self._remaining = what, Remaining()
            if not self._live.on:
                click.echo(f"{what}: {total}", err=True)
        if done == total:
            self._live.clear()
            if self._live.on:
                click.echo(f"{what}: {done}/{total}", err=True)
            return
        left = self._remaining.seconds(done, total)
        self._live.show(f"{what}: {done}/{total}" + (f", about {duration(left)} left" if left else ""))

"""`harness mutants`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from harness.ci.outputs import prepare_folder
from harness.cli.output import print_summary
from harness.records.record import RunRecord
from harness.verdict import ExitCode, UsageError, Verdict, exit_code

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
    help="Built-in name or package.module:attribute; it has to be right, the faults are planted in it.",
)
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME", help="Only this fault; may be repeated. Default: all."
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
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("harness-out"),
    show_default=True,
    help="Folder of record.json and report.html.",
)
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
    from harness.records.new import new_record

    for name, value, least in (
        ("--seeds", seeds, 0), ("--seed", seed, 0), ("--max-seconds", max_seconds, 0), ("--jobs", jobs, 1),
    ):  # fmt: skip
        if not value >= least:  # NaN too
            raise UsageError(f"{name} must be at least {least}, got {value}")
    find_profile(profile)
    if controls or self_test:
        from harness.cli.mutants_checks import run_checks

        return run_checks(
            controls=controls,
            self_test=self_test,
            examples=examples,
            seed=seed,
            jobs=jobs,
            max_seconds=max_seconds,
            out=out,
        )
    folder = prepare_folder(out)
    from harness.mutants.run import MutantsRequest, run_mutants
    from harness.running.session import CandidateStartError

    record = new_record(profile, seed)
    found: dict[str, Any] = {}
    record.mutants = found
    request = MutantsRequest(
        candidate, faults, categories, seeds, profile, seed, matrix, upstream, max_seconds, jobs
    )
    try:
        record.verdict = run_mutants(request, found, _Progress())
        record.reason = reason(found)
    except CandidateStartError as error:
        record.mutants, record.verdict = None, Verdict.UNKNOWN
        record.reason = f"{candidate} cannot run here: {error}"
    except KeyboardInterrupt:
        record.interrupted, record.reason = True, "interrupted"
        _finish(record, folder)
        return ExitCode.INTERRUPTED
    _finish(record, folder)
    return exit_code(record.verdict)


def reason(found: dict[str, Any]) -> str:
    """Return the one sentence that sums up a finished run."""
    score = found["score"]
    names = ", ".join(f["name"] for f in found["faults"] if f["status"] == "survived")
    if names:
        return (
            f"{score['survived']} of {score['faults'] - score['not_planted']} planted faults survive: {names}"
        )
    if score["not_judged"]:
        first = next(f for f in found["faults"] if f["status"] == "not judged")
        return f"{score['not_judged']} planted faults could not be judged; {first['name']}: {first['reason']}"
    if not score["killed"]:
        return (
            f"none of {score['faults']} faults could be planted: {found['faults'][0]['reason']}"
            if score["faults"]
            else "no fault was chosen"
        )
    return (
        f"all {score['killed']} planted faults killed, in all {score['plantings']} forms; "
        f"median {score['median_examples']:g} examples to the kill"
    )


def _finish(record: RunRecord, folder: Path) -> None:
    from harness.ci.outputs import write_outputs

    record.seconds = (record.mutants or {}).get("seconds", 0.0)
    record.write(folder / "record.json")
    written = write_outputs(record, folder)
    if record.mutants and record.mutants["faults"]:
        _print(record.mutants)
    print_summary(record, {"record": folder / "record.json", **written})


def _print(found: dict[str, Any]) -> None:
    """Print what survived first, then the figures."""
    for result in found["survivors"]:
        click.secho(
            f"survived: {result['planting']} under {result['rule']}, {result['examples']} problems", fg="red"
        )
    reasons: dict[str, list[str]] = {}
    for fault in found["faults"]:
        if fault["status"] in {"not judged", "not planted"}:
            reasons.setdefault(f"{fault['status']}, {fault['reason']}", []).append(fault["name"])
    for why, names in reasons.items():
        click.echo(f"{why}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''} ({len(names)})")
    for failure in found["candidate_failures"][:5]:
        click.echo(
            f"the candidate itself fails {failure['rule']} on {failure['problem']}: {failure['message']}"
        )
    score = found["score"]
    if score["plantings"]:
        click.echo(
            f"killed {score['plantings_killed']} of {score['plantings']} plantings of {score['killed'] + score['survived']} faults"
            + (f"; examples to the kill: median {score['median_examples']:g}, most {score['most_examples']}; "
               f"seconds: median {score['median_seconds']:.3f}" if score["plantings_killed"] else "")
            + f"; {found['seconds']:.0f} s in all"
        )  # fmt: skip
    if found["matrix"]:
        powerless = ", ".join(found["matrix"]["powerless"]) or "none"
        click.echo(f"rules that kill nothing: {powerless}")
    if found["upstream"]:
        _print_upstream(found["upstream"])


def _print_upstream(table: dict[str, Any]) -> None:
    faults = len(table["faults"])
    click.echo(f"criteria of other projects, of {faults} faults missed everywhere / at their weakest:")
    width = max(len(c["name"]) for c in table["criteria"])
    for criterion in table["criteria"]:
        missed = [len(criterion["missed"][case]) for case in table["cases"]]
        fair = "" if all(criterion["accepts_candidate"].values()) else "  (rejects the healthy candidate too)"
        click.echo(f"  {criterion['name']:<{width}}  {missed[0]:>4} / {missed[1]:<4}{fair}")


class _Progress:
    """One line on a terminal, updated in place; elsewhere one line a stage."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = 0.0
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._live and (time.monotonic() > self._last + 0.1 or done == total):
            self._last = time.monotonic()
            end = done == total
            click.echo(f"\r{what}: {done}/{total}\x1b[K", err=True, nl=end)
        elif not self._live and what != self._what:
            self._what = what
            click.echo(f"{what}: {total}", err=True)

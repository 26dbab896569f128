"""`harness deepep`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from harness.candidates import OVER_RANKS
from harness.candidates.over_names import OverName, transports_of
from harness.candidates.traits import TRANSPORTS
from harness.ci.folder import output_options, own_folder
from harness.ci.options import ci_options, earlier_record, exit_with
from harness.cli import complete
from harness.cli.check import judgeable, profile_with, refuse_outside, run_and_report
from harness.verdict import ExitCode, UsageError, unknown_name

MOST_CALL_SECONDS = 3600
RULES = ("ROUTE", "DISPATCH", "COMBINE", "EP")


@click.command("deepep")
@click.option(
    "--candidate", default="deepep", show_default=True, metavar="NAME",
    help=f"One of {', '.join(OVER_RANKS)}, or NAME+FAULT with a planted fault.",
)  # fmt: skip
@click.option(
    "--ranks", type=int, help="Processes, one GPU each. Default: 2; under torchrun, those that it started."
)
@click.option(
    "--transports", default="", metavar="NAME,NAME",
    help=f"Judge only these of {', '.join(TRANSPORTS)} and logfmt. Default: all that it has.",
)  # fmt: skip
@click.option(
    "--experts", default="", metavar="NAME", shell_complete=complete.candidates,
    help="The candidate whose masked_moe runs between dispatch and combine. Default: eager.",
)  # fmt: skip
@click.option(
    "--rule", "rules", multiple=True, metavar="ID", shell_complete=complete.rules,
    help=f"Only this rule; may be repeated. Default: {', '.join(RULES)}.",
)  # fmt: skip
@click.option(
    "--profile", default="quick", show_default=True, metavar="NAME", shell_complete=complete.profiles,
    help="quick, standard or deep.",
)  # fmt: skip
@click.option("--problem", metavar="STRING", help="Judge only this problem, as a failure printed it.")
@click.option("--seed", default=0, show_default=True, help="Of the drawn problems.")
@click.option("--max-seconds", default=0.0, show_default=True, help="As for `harness check`.")
@click.option(
    "--call-seconds", default=30.0, show_default=True, help="A call of the ranks without an answer for so long hangs."
)  # fmt: skip
@output_options("deepep-run")
@ci_options
def deepep_command(
    candidate: str,
    ranks: int | None,
    transports: str,
    experts: str,
    rules: tuple[str, ...],
    profile: str,
    problem: str | None,
    seed: int,
    max_seconds: float,
    call_seconds: float,
    out: Path,
    junit: Path | None,
    fail_on: str,
    against: str | None,
) -> int:
    """Judge dispatch and combine over ranks that are processes: DeepEP or NCCL EP on GPUs, or gloo.

    Alone it starts the ranks itself; under torchrun the first process judges and the others serve it.
    """
    from harness.candidates.over_ranks import CALL_SECONDS, MOST_PROCESSES
    from harness.ranks import torchrun
    from harness.records.new import new_record
    from harness.rules import find_rules
    from harness.running.check import CheckRequest
    from harness.running.known_failures import default_path, load_known_failures

    refuse_outside(max_seconds=max_seconds, seed=seed)
    if not 0 < call_seconds <= MOST_CALL_SECONDS:
        raise UsageError(
            f"--call-seconds must lie above 0 and at most at {MOST_CALL_SECONDS}, got {call_seconds:g}"
        )
    if ranks is not None and not 1 <= ranks <= MOST_PROCESSES:
        raise UsageError(f"--ranks must lie in [1, {MOST_PROCESSES}], got {ranks}")
    place = torchrun.find_place()
    if place is not None and place.rank:
        torchrun.serve_calls(place)  # ends this process
    name = over(candidate, ranks if place is None else place.ranks, transports, experts)
    request = CheckRequest(
        candidates=[name],
        rules=find_rules(list(rules or RULES)),
        profile=profile_with(profile, 0),
        seed=seed,
        problem=None if problem is None else judgeable(problem, 0),
        max_seconds=max_seconds,
        isolate=place is None,
        known=load_known_failures(default_path()),
        all_rules=False,
    )
    earlier = earlier_record(fail_on, against)
    folder = own_folder(out)
    os.environ[CALL_SECONDS] = str(call_seconds)
    if place is not None:
        torchrun.judge_here(place)
        # torchrun sends it as soon as any rank has died, which is for this process to find out and to judge.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    record = new_record(profile, seed)
    run_and_report(request, record, folder, junit)
    return ExitCode.INTERRUPTED if record.interrupted else exit_with(fail_on, record, earlier)


def over(candidate: str, ranks: int | None, transports: str = "", experts: str = "") -> str:
    """Return the name of a candidate over so many ranks, judged by some transports, with some experts.

    Args:
        candidate: as --candidate has it, perhaps with some of this in its name.
        ranks: None for as many as its name says.
        transports: with commas, "" for what its name says.
        experts: name of another candidate, "" for what its name says.

    Raises:
        UsageError: its ranks are no processes, or its name says something else.
    """
    name, plus, faults = candidate.partition("+")
    library = name.partition(":")[0]
    if library not in OVER_RANKS:
        if ":" not in name:
            raise unknown_name("candidate", library, OVER_RANKS, also="package.module:attribute")
        if transports or experts:
            raise UsageError(f"--transports and --experts are for {', '.join(OVER_RANKS)}, not for {name!r}")
        return candidate  # it says itself how many
    said = OverName.of(name)
    asked = {"ranks": ranks or 0, "transports": transports_of(transports), "experts": experts}
    for what, value in asked.items():
        if value and getattr(said, what) and getattr(said, what) != value:
            given = ",".join(value) if isinstance(value, tuple) else value
            raise UsageError(
                f"candidate {name!r} and {given} ranks do not agree; give one of them"
                if what == "ranks"
                else f"candidate {name!r} and --{what} {given} do not agree; give one of them"
            )
    found = OverName(
        library,
        *(asked[what] or getattr(said, what) for what in asked),  # type: ignore[arg-type]
    )
    return f"{found}{plus}{faults}"

"""`harness races`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from harness.ci.folder import output_options, own_folder
from harness.records.parts.races import RacesRun
from harness.records.record import RunRecord
from harness.verdict import ExitCode, UsageError, Verdict, exit_code


@click.command("races")
@click.option(
    "--kernel", "kernels", multiple=True, metavar="NAME",
    help="Only this kernel; may be repeated. Known: 128x128, 128x256, 128x128-cluster-2x2, 256x128-pair. Default: all.",
)  # fmt: skip
@click.option("--schedules", default=16, show_default=True, help="Drawn schedules per kernel and mutation.")
@click.option(
    "--mutate/--no-mutate",
    default=False,
    show_default=True,
    help="Plant every mutation and see that it is caught.",
)
@click.option("--only", default="", metavar="PREFIX", help="Only mutations whose name starts with this.")
@output_options("races-run")
def races_command(kernels: tuple[str, ...], schedules: int, mutate: bool, only: str, out: Path) -> int:
    """Run FlashInfer's masked GEMM, interpreted, under many schedules: the same bits in each, or a race.

    With --mutate, deleted waits, fences and arrivals, wrong strides, swizzles and arguments are planted one at a time; each
    must be caught. Exit codes: 0 PASS, 1 a race or a survivor, 2 the interpreted path cannot run here.
    """
    from harness.candidates.cutedsl_on_cpu import cpu_support, new_version
    from harness.records.new import new_record

    if schedules < 1:
        raise UsageError(f"--schedules must be at least 1, got {schedules}")
    support = cpu_support("harness races")
    if not support:
        record = new_record("", 0)
        record.reason = support.reason
        return _finish(record, own_folder(out))
    from harness.races.hunt import hunt
    from harness.races.problem import KERNELS

    known = {kernel.name: kernel for kernel in KERNELS}
    for name in kernels:
        if name not in known:
            raise UsageError(f"unknown kernel {name!r}: known are {', '.join(known)}")
    folder, wanted = own_folder(out), kernels or tuple(known)
    record, started = new_record("", 0), time.monotonic()
    found = RacesRun(schedules, mutate, only)
    try:
        for name in wanted:
            found.kernels.append(hunt(known[name], schedules, mutate=mutate, only=only, report=click.echo))
    except KeyboardInterrupt:
        record.interrupted = True
    record.seconds = time.monotonic() - started
    record.verdict, record.reason = conclude(found, len(wanted))
    record.reason = "; ".join(filter(None, (record.reason, new_version("emulated"))))
    record.races_run = found
    return _finish(record, folder)


def conclude(found: RacesRun, wanted: int) -> tuple[Verdict, str]:
    """Return the verdict on a run and its reason; `wanted` kernels were asked for."""
    wrong = [f"{k.kernel}: {k.wrong} elements are not the exact result" for k in found.kernels if k.wrong]
    races = [f"{k.kernel}: schedule {seed}" for k in found.kernels for seed in k.differing]
    survivors = [f"survived: {k.kernel}: {m.name}" for k in found.kernels for m in k.survivors]
    if bad := [*wrong, *races, *survivors]:
        return Verdict.FAIL, "; ".join(bad)
    if len(found.kernels) < wanted:
        return Verdict.UNKNOWN, f"interrupted after {len(found.kernels)} of {wanted} kernels"
    planted = sum(not m.benign for k in found.kernels for m in k.caught)
    caught = f", {planted} planted mistakes, all caught" if found.mutate else ""
    same = f"{wanted} kernels, each the same bits in {found.schedules} schedules"
    return Verdict.PASS, same + caught


def _finish(record: RunRecord, folder: Path) -> int:
    from harness.cli.output import finish

    finish(record, folder)
    return ExitCode.INTERRUPTED if record.interrupted else exit_code(record.verdict)

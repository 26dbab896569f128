"""`harness races`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.verdict import ExitCode, UsageError


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
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("harness-out"),
    show_default=True,
    help="Folder of races.json.",
)
def races_command(kernels: tuple[str, ...], schedules: int, mutate: bool, only: str, out: Path) -> int:
    """Run FlashInfer's masked GEMM, interpreted, under many schedules: the same bits in each, or a race.

    With --mutate, deleted waits, fences and arrivals, wrong strides, swizzles and arguments are planted one at a time; each
    must be caught. Exit codes: 0 PASS, 1 a race or a survivor, 2 the interpreted path cannot run here.
    """
    from harness.candidates.cutedsl_on_cpu import cpu_support

    if schedules < 1:
        raise UsageError(f"--schedules must be at least 1, got {schedules}")
    support = cpu_support("harness races")
    if not support:
        click.echo(f"UNKNOWN: {support.reason}")
        return ExitCode.UNKNOWN
    from harness.races.hunt import hunt
    from harness.races.problem import KERNELS

    known = {kernel.name: kernel for kernel in KERNELS}
    for name in kernels:
        if name not in known:
            raise UsageError(f"unknown kernel {name!r}: known are {', '.join(known)}")
    results = [
        hunt(known[name], schedules, mutate=mutate, only=only, report=click.echo)
        for name in kernels or tuple(known)
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "races.json"
    path.write_text(json.dumps([result.to_dict() for result in results], indent=1) + "\n", encoding="utf-8")
    survivors = [f"{r.kernel}: {c.name}" for r in results for c in r.caught if c.survived]
    races = [f"{r.kernel}: schedule {seed}" for r in results for seed in r.differing]
    planted = sum(not c.benign for r in results for c in r.caught)
    click.echo(f"races: {path}")
    if survivors or races or any(r.wrong for r in results):
        wrong = [f"{r.kernel}: {r.wrong} elements are not the exact result" for r in results if r.wrong]
        click.echo(f"FAIL: {'; '.join([*wrong, *races, *(f'survived: {s}' for s in survivors)])}")
        return ExitCode.FAIL
    caught = f", {planted} planted mistakes, all caught" if mutate else ""
    click.echo(f"PASS: {len(results)} kernels, each the same bits in {schedules} schedules{caught}")
    return ExitCode.PASS

"""`harness doctor`."""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

import click

from harness.extras import missing
from harness.processes import PACKAGES as OURS
from harness.verdict import ExitCode


@click.command("doctor")
@click.option(
    "--fingerprints",
    is_flag=True,
    help="Print instead the rows of the installed kernels for the table of known ones (docs/cutedsl-cpu.md, Versions).",
)
def doctor_command(fingerprints: bool) -> int:
    """Say what can run on this machine, and why the rest cannot."""
    if fingerprints:
        return _print_fingerprints()
    from harness.candidates import CANDIDATES, stages_of, support_of
    from harness.faults.named import load_named
    from harness.records.environment import PACKAGES, describe_environment

    environment = describe_environment()
    click.echo(f"Python {environment.python} on {environment.platform}, {environment.cpu_count} processors")
    click.echo(f"GPUs: {', '.join(environment.gpus) or 'none that torch sees'}")
    for name in PACKAGES:
        click.echo(f"  {name:<20} {environment.packages.get(name, 'not installed')}")
    for name, place in _found_first().items():
        click.echo(f"{name}: shadowed by {place} where Python looks there first, as `python -m pytest` does")
    runs = 0
    for name in CANDIDATES:
        candidate = load_named(name)
        support = support_of(candidate)
        runs += support.ok
        state = (
            "runs here: " + ", ".join(stages_of(candidate))
            if support
            else f"does not run here: {support.reason}"
        )
        click.echo(f"{name}: {state}")
        if support and (warning := getattr(candidate, "warning", "")):
            click.echo(f"  {warning}")
    needed = {"harness gsm8k": "gsm8k", "harness canary": "canary", "harness check --ray": "cluster"}
    for command, extra in needed.items():
        reason = missing(command, extra)
        click.echo(f"{command}: does not run here: {reason}" if reason else f"{command}: runs here")
    return ExitCode.PASS if runs else ExitCode.UNKNOWN


def _found_first() -> dict[str, str]:
    """Return which packages of ours a Python that looks in the current folder first does not find, and what it finds."""
    ours = Path(__file__).parents[2]
    found = {}
    for name in OURS:
        spec = importlib.machinery.PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])
        place = Path(spec.origin) if spec and spec.origin else None
        if place and place.resolve() != (ours / name / "__init__.py").resolve():
            found[name] = str(place)
    return found


def _print_fingerprints() -> int:
    from harness.candidates import cutedsl_on_cpu as on_cpu
    from harness.candidates import known_kernels as kernels

    support = on_cpu.cpu_support("--fingerprints")
    if not support:
        click.echo(f"harness: {support.reason}", err=True)
        return ExitCode.UNKNOWN
    found = on_cpu.fingerprints(kernels.GEMM, kernels.CUDA_QUANTIZERS, kernels.CUTEDSL_QUANTIZERS)
    for part, value in found.items():
        versions = kernels.known()[part].get(value)
        click.echo(f"# known, with {', '.join(versions)}" if versions else "# not yet known")
        click.echo(kernels.table_row(part, value))
    return ExitCode.PASS

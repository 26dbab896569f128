"""`harness bench`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from harness.verdict import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

PARTS = ("references", "problems")


@click.command("bench")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Default: a GPU where torch sees one, else the CPU."
)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, seconds.")
def bench_command(device: str | None, parts: tuple[str, ...], as_json: bool) -> int:
    """Say how long references and judged problems take on this machine: medians, in brackets the fastest and the slowest.

    The references beside torchao, compressed-tensors, a loop over experts and plain matmuls; a problem of QUANT, GEMM and
    MOE as its experts, widths and rows grow. Nothing is judged by a time. Exits with 2 where torch sees no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        click.echo("harness bench needs a CUDA device for --device cuda, torch sees none", err=True)
        return ExitCode.UNKNOWN
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    say = (lambda _: None) if as_json else click.echo
    say(f"{where}, torch {torch.__version__}")
    found: dict[str, object] = {"device": where, "torch": torch.__version__}
    for part in parts or PARTS:
        found[part] = (_references if part == "references" else _problems)(device, say)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    return ExitCode.PASS


def _references(device: str, say: Callable[[str], None]) -> list[dict[str, object]]:
    from harness.bench import references

    rows = []
    for row in references.rows(device):
        say(f"{row.what:<52} {row.timing or '-'!s:<28} {row.note}".rstrip())
        rows.append(asdict(row))
    return rows


def _problems(device: str, say: Callable[[str], None]) -> list[dict[str, object]]:
    from harness.bench import growth

    say(f"\n{'grown':<16} {'rule':<6} {'seconds':>9}   problem: made, run and judged")
    judged = []
    for one in growth.measured(device):
        seconds = f"{one.seconds:.3f}" if one.seconds is not None else "no memory"
        say(f"{'{} {:,}'.format(*one.grown):<16} {one.rule:<6} {seconds:>9}   {one.problem}")
        judged.append(asdict(one))
    return judged

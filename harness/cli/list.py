"""`harness list`."""

from __future__ import annotations

import click

from harness.candidates import CANDIDATES
from harness.problem import DATA, OPTIONS, PLANTED_TRAPS, SHAPE_TRAPS
from harness.profiles import PROFILES
from harness.rules import RULES
from harness.shapes import MODELS


@click.command("list")
def list_command() -> None:
    """List candidates, rules, profiles, traps and shapes."""
    _section("Candidates (and package.module:attribute)", dict(CANDIDATES))
    _section("Rules", {rule.id: rule.title for rule in RULES})
    _section(
        "Profiles",
        {
            p.name: f"{p.examples} problems a rule, k up to {p.k}, {p.experts} experts"
            for p in PROFILES.values()
        },
    )
    _section("Data", DATA)
    _section("Traps", {**SHAPE_TRAPS, **PLANTED_TRAPS})
    _section("Options of a problem", OPTIONS)
    _section(
        "Shapes",
        {
            m.name: f"hidden {m.hidden}, inter {m.inter}, {m.experts} experts, top {m.topk}"
            for m in MODELS.values()
        },
    )


def _section(title: str, rows: dict[str, str]) -> None:
    click.secho(title, bold=True)
    width = max(map(len, rows))
    for name, words in rows.items():
        click.echo(f"  {name:<{width}}  {words}")

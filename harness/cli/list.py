"""`harness list`."""

from __future__ import annotations

import click

from harness.candidates import CANDIDATES
from harness.problems.problem import DATA, OPTIONS, SHAPE_TRAPS
from harness.problems.profiles import PROFILES
from harness.problems.shapes import MODELS
from harness.problems.traps import TRAPS
from harness.rules import RULES


@click.command("list")
@click.argument("what", required=False, type=click.Choice(["faults", "bugs"]))
def list_command(what: str | None) -> None:
    """List candidates, rules, profiles, traps and shapes; with `faults` or `bugs` the catalog of planted faults.

    `faults` are the mistakes that can be planted in any candidate (`--candidate physical+FAULT`), by category, each with the
    rule that must kill it; `bugs` are the real ones that they model, or the reason why one has no fault.
    """
    if what == "faults":
        _faults()
        return
    if what == "bugs":
        _bugs()
        return
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
    shapes = {name: trap.sentence for name, trap in SHAPE_TRAPS.items()}
    _section("Traps", shapes | {name: trap.sentence for name, trap in TRAPS.items()})
    _section("Options of a problem", OPTIONS)
    _section(
        "Catalog",
        {
            "harness list faults": "mistakes that can be planted in any candidate",
            "harness list bugs": "the real bugs that they model",
        },
    )
    _section(
        "Shapes",
        {
            m.name: f"hidden {m.hidden}, inter {m.inter}, {m.experts} experts, top {m.topk}"
            for m in MODELS.values()
        },
    )


def _faults() -> None:
    from harness.faults.fault import all_faults

    faults = all_faults()
    for category in dict.fromkeys(f.category for f in faults.values()):
        _section(
            f"Faults: {category}",
            {
                f.name: f"{f.title} [{f.killed_by}; {', '.join(f.bugs)}]"
                for f in faults.values()
                if f.category == category
            },
        )
    click.echo(
        f"{len(faults)} faults. Plant one with --candidate physical+NAME, NAME@SEED or NAME@weakest; "
        "`harness list bugs` has the threads."
    )


def _bugs() -> None:
    from harness.faults.bugs import all_bugs, bug_classes

    bugs = all_bugs()
    for kind, name in bug_classes().items():
        _section(
            f"{kind}: {name}",
            {
                f"{b.id} {b.thread}": f"{b.title}: {', '.join(b.faults) or 'no fault, ' + b.reason}"
                for b in bugs.values()
                if b.kind == kind
            },
        )
    with_faults = sum(bool(b.faults) for b in bugs.values())
    click.echo(
        f"{len(bugs)} bugs, {with_faults} with planted faults, {len(bugs) - with_faults} with a reason."
    )


def _section(title: str, rows: dict[str, str]) -> None:
    click.secho(title, bold=True)
    width = max(map(len, rows))
    for name, words in rows.items():
        click.echo(f"  {name:<{width}}  {words}")

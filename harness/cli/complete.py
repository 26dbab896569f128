"""Values that a shell completes: names of candidates, faults, rules, profiles and shapes. Imports no torch."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def candidates(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the built-in candidates; behind NAME+ the faults that can be planted in it."""
    from harness.candidates import CANDIDATES

    name, plus, start = incomplete.partition("+")
    if plus:
        return [CompletionItem(f"{name}+{found}") for found in _faults() if found.startswith(start)]
    return [CompletionItem(found) for found in CANDIDATES if found.startswith(incomplete)]


def faults(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the faults of the catalog."""
    return [CompletionItem(found) for found in _faults() if found.startswith(incomplete)]


def rules(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the ids of the rules, each with its sentence, in whatever case it is typed."""
    from harness.rules import RULES

    start = incomplete.upper()
    return [CompletionItem(rule.id, help=rule.title) for rule in RULES if rule.id.startswith(start)]


def profiles(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the profiles."""
    from harness.problems.profiles import PROFILES

    return [CompletionItem(found) for found in PROFILES if found.startswith(incomplete)]


def shapes(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the models whose shapes are known."""
    from harness.problems.shapes import MODELS

    return [CompletionItem(found) for found in MODELS if found.startswith(incomplete)]


def _faults() -> list[str]:
    """Return the faults that model a bug: the catalog itself would load torch."""
    from harness.faults.bugs import all_bugs

    return sorted({fault for bug in all_bugs().values() for fault in bug.faults})

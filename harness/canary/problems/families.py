"""The families: which are trained on, and which never are."""

from __future__ import annotations

from types import ModuleType

from harness.canary.problems import (
    family_ages,
    family_averages,
    family_collections,
    family_comparison,
    family_cooking,
    family_earnings,
    family_farming,
    family_fractions,
    family_games,
    family_measures,
    family_percentages,
    family_plans,
    family_rates,
    family_ratios,
    family_schedules,
    family_sharing,
    family_shopping,
    family_single_steps,
    family_tanks,
    family_tickets,
    family_transport,
    family_unit_price,
)
from harness.canary.problems.story import TEMPLATES

_TRAINED = (
    family_shopping,
    family_unit_price,
    family_comparison,
    family_sharing,
    family_fractions,
    family_percentages,
    family_rates,
    family_schedules,
    family_earnings,
    family_averages,
    family_ages,
    family_cooking,
    family_farming,
    family_collections,
    family_measures,
    family_transport,
    family_single_steps,
    family_plans,
)
_UNSEEN = (family_tickets, family_tanks, family_ratios, family_games)


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".family_")[2]


FAMILIES: tuple[str, ...] = tuple(_name(module) for module in _TRAINED)
"""Families used in training."""

UNSEEN_FAMILIES: tuple[str, ...] = tuple(_name(module) for module in _UNSEEN)
"""Families that are only tested."""


def template_ids(families: tuple[str, ...]) -> list[str]:
    """Return the ids of all templates of some families."""
    return [name for family in families for name in TEMPLATES[family]]

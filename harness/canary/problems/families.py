"""The families: which are trained on, and which never are."""

from __future__ import annotations

from harness.canary.problems import family_comparison, family_shopping, family_tickets
from harness.canary.problems.story import TEMPLATES

_TRAINED = (family_shopping, family_comparison)
_UNSEEN = (family_tickets,)


def _name(module: object) -> str:
    return str(getattr(module, "__name__", "")).rpartition(".family_")[2]


FAMILIES: tuple[str, ...] = tuple(_name(module) for module in _TRAINED)
"""Families used in training."""

UNSEEN_FAMILIES: tuple[str, ...] = tuple(_name(module) for module in _UNSEEN)
"""Families that are only tested."""


def template_ids(families: tuple[str, ...]) -> list[str]:
    """Return the ids of all templates of some families."""
    return [name for family in families for name in TEMPLATES[family]]

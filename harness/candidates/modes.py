"""Modes of a candidate: ways in which its package computes, each judged as a candidate of its own, `NAME:MODE`.

A class has `modes`, texts without ":", "+" and spaces, the first of which is what NAME alone means, and takes one as the
argument `mode`. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.verdict import UsageError, unknown_name


def in_mode(made: Any, name: str, mode: str) -> Any:
    """Return a candidate in a mode.

    Args:
        made: what its name stands for: a class with `modes`.
        name: of the candidate.
        mode: one of them.

    Raises:
        UsageError: it has none, or not this one.
    """
    modes = modes_of(made)
    if not modes:
        raise UsageError(
            f"candidate {name!r} has no modes, so that {mode!r} behind it means nothing; write {name}"
        )
    if mode not in modes:
        raise unknown_name(f"mode of {name}", mode, modes)
    return made(mode=mode)


def modes_of(made: Any) -> tuple[str, ...]:
    """Return the modes that a class or a candidate declares, () where it has none."""
    return tuple(getattr(made, "modes", ()))


def names_in_modes(name: str, modes: Sequence[str], wanted: str) -> list[str]:
    """Return the names of a candidate in the modes that were asked for: "all", or some, with commas between them.

    Args:
        name: of the candidate; one that names a mode, and one without modes, stays as it is.
        modes: that it has.
        wanted: as on the command line.

    Raises:
        UsageError: it has not one of them.
    """
    base, plus, faults = name.partition("+")
    if not modes:
        return [name]
    chosen = list(modes) if wanted == "all" else [part.strip() for part in wanted.split(",")]
    for mode in chosen:
        if mode not in modes:
            raise unknown_name(f"mode of {base}", mode, modes, also="all")
    return [f"{base}:{mode}{plus}{faults}" for mode in chosen]

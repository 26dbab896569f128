"""The 170 real bugs behind the catalog (bugs.toml): where each was reported, and which planted faults model it. No torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("bugs.toml")


@dataclass(frozen=True)
class Bug:
    """One bug that a kernel or an engine had.

    Attributes:
        id: "A01" to "I10".
        thread: where it was reported or fixed, "repository#number".
        title: what went wrong, in one line.
        kind: its class, "K01" to "K25" (`bug_classes`).
        faults: names of the planted faults that model it.
        reason: why there is none; "" where there are.
    """

    id: str
    thread: str
    title: str
    kind: str
    faults: tuple[str, ...]
    reason: str


@cache
def all_bugs() -> dict[str, Bug]:
    """Return every bug by id, in order.

    Raises:
        ValueError: an entry of bugs.toml has neither faults nor a reason, or both, or an id that occurs twice.
    """
    bugs: dict[str, Bug] = {}
    for entry in _read()["bug"]:
        bug = Bug(
            entry["id"],
            entry["thread"],
            entry["title"],
            entry["class"],
            tuple(entry.get("faults", ())),
            entry.get("reason", ""),
        )
        if bool(bug.faults) == bool(bug.reason):
            raise ValueError(
                f"bugs.toml: {bug.id} must have faults, or a reason why there is none, and not both"
            )
        if bug.id in bugs:
            raise ValueError(f"bugs.toml: {bug.id} has two entries")
        bugs[bug.id] = bug
    return bugs


def threads_of(ids: Iterable[str]) -> list[str]:
    """Return where bugs were reported, "repository#number", without repetition; an unknown id stays as it is."""
    bugs = all_bugs()
    return list(dict.fromkeys(bugs[name].thread if name in bugs else name for name in ids))


@cache
def bug_classes() -> dict[str, str]:
    """Return the name of every class of bugs, by its key ("K05": "scale layout / pitch ...")."""
    classes: dict[str, str] = _read()["classes"]
    return classes


@cache
def _read() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))

"""Each failure with its message, the command that repeats it, its diagnosis, and where its errors sit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.diagnosis import Diagnosis, read
from reports.maps import Maps, maps_of
from reports.template import fill
from reports.text import plain
from reports.view import failure_groups

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import Failure, RunRecord

OPEN_AT_FIRST = 2
"""Failures of a rule that are unfolded when the page opens; more of the same would push the next rule out of sight."""

KINDS = {
    "illegal": "illegal element",
    "crash": "candidate crashed",
    "timeout": "time limit reached",
    "rejected": "input rejected",
    "known": "known failure",
}

# Lines that the harness adds to a message for the terminal, and that stand elsewhere on the page.
_SHOWN_ELSEWHERE = re.compile(r"  (?:extent|candidate|problem|reproduce|diagnosis) +\S")


@dataclass(frozen=True)
class Shown:
    """One failure ready to be drawn."""

    failure: Failure
    kind: str
    place: str
    message: str
    extent: list[str]
    diagnosis: Diagnosis | None
    maps: Maps
    is_open: bool


def section(record: RunRecord) -> Markup | None:
    """Draw the failures rule by rule, or nothing."""
    groups = failure_groups(record)
    if not groups:
        return None
    return fill(
        "failures.html.j2",
        groups=[
            (group, [_shown(failure, number < OPEN_AT_FIRST) for number, failure in enumerate(group.shown)])
            for group in groups
        ],
    )


def _shown(failure: Failure, is_first: bool) -> Shown:
    return Shown(
        failure,
        KINDS.get(failure.kind, failure.kind),
        place_words(failure),
        own_message(failure.message),
        extent_words(failure.extent),
        read(failure.diagnosis),
        maps_of(failure),
        is_first and failure.kind != "known",
    )


def place_words(failure: Failure) -> str:
    """Return the worst element: "expert 1, row 0, col 3"."""
    # Indices are written without separators: they are typed into a debugger, not read as amounts.
    return ", ".join(f"{name} {index}" for name, index in failure.place.items())


def own_message(message: str) -> str:
    """Return the message without the lines that repeat what the page shows beside it."""
    return "\n".join(line for line in message.split("\n") if not _SHOWN_ELSEWHERE.match(line))


def extent_words(extent: dict[str, Any]) -> list[str]:
    """Return an extent in words: "32 of 64 elements", "experts 1, 3"; what it does not know as name and value."""
    words = []
    for name, value in extent.items():
        whole = extent.get("of" if name == "elements" else f"of_{name}")
        if whole is not None:
            words.append(f"{plain(value)} of {plain(whole)} {name}")
        elif name != "of" and not (name.startswith("of_") and name[3:] in extent):
            words.append(f"{name} {plain(value)}")
    return words

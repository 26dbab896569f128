"""Since when something is not good, and when it last was: what a report says of the runs before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.history_words import changed_between, run_date
from reports.text import count

if TYPE_CHECKING:
    from harness.records.history import History


@dataclass(frozen=True)
class Since:
    """The first bad run in a row and the last good run before them, each with the address of its report ("": none)."""

    first: str
    first_link: str
    runs: str
    good: str
    good_link: str
    changed: str


def since(past: History, part: str, subject: str, who: str) -> Since | None:
    """Return since when something is not good in the newest run of a history; None where that run has no such verdict."""
    newest = len(past.runs) - 1
    standing = next(
        (
            s
            for s in past.standing
            if (s.part, s.subject, s.who) == (part, subject, who) and s.newest == newest
        ),
        None,
    )
    if standing is None:
        return None
    first = past.runs[standing.since]
    good = past.runs[standing.good] if standing.good is not None else None
    return Since(
        first="this run" if standing.since == newest else run_date(first),
        first_link="" if standing.since == newest else first.link,
        runs=f"{count(standing.runs)} runs in a row" if standing.runs > 1 else "",
        good=run_date(good) if good else "",
        good_link=good.link if good else "",
        changed=changed_between(past, standing),
    )

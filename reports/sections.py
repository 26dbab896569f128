"""Which sections a page has, and in which order.

To add one, write `reports/<name>.py` with `section(record) -> Markup | None` and a template beside it, and add one
line here. The page wraps what the function returns in a landmark with the title as its heading (h2), so a section
starts its own headings at h3. None means that the record holds nothing for it: no heading, no entry in the contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.from_json import RecordError
from reports import (
    canary,
    candidates,
    environment,
    errors,
    failures,
    gsm8k,
    known,
    margins,
    mutants,
    races,
    replay,
    rules,
    skips,
    traps,
)
from reports import compile as cross_compile
from reports.template import fill

if TYPE_CHECKING:
    from collections.abc import Callable

    from markupsafe import Markup

    from harness.records.record import RunRecord


@dataclass(frozen=True)
class Section:
    """One part of the page: its anchor, its heading, and the function that draws it."""

    anchor: str
    title: str
    draw: Callable[[RunRecord], Markup | None]


SECTIONS: tuple[Section, ...] = (
    # What is broken comes before what was looked at: a reader has ten seconds.
    Section("errors", "Errors", errors.section),
    Section("gsm8k", "GSM8K", gsm8k.section),
    Section("compile", "Cross-compilation", cross_compile.section),
    Section("races", "Races", races.section),
    Section("replay", "Replay", replay.section),
    Section("failures", "Failures", failures.section),
    Section("rules", "Rules", rules.section),
    Section("canary", "Canary", canary.section),
    Section("mutants", "Planted faults", mutants.section),
    Section("margins", "Error against bound", margins.section),
    Section("candidates", "Candidates", candidates.section),
    Section("traps", "Traps", traps.section),
    Section("known", "Known failures", known.section),
    Section("skips", "Skipped", skips.section),
    Section("environment", "Environment", environment.section),
)


@dataclass(frozen=True)
class Drawn:
    """A section that has something to show for one record."""

    anchor: str
    title: str
    body: Markup


def draw_all(record: RunRecord) -> list[Drawn]:
    """Return every section that has something to show, in order; a part that is damaged says which field is."""
    bodies = ((section, _body(section, record)) for section in SECTIONS)
    return [Drawn(section.anchor, section.title, body) for section, body in bodies if body is not None]


def _body(section: Section, record: RunRecord) -> Markup | None:
    try:
        return section.draw(record)
    except RecordError as error:
        return fill("damaged.html.j2", reason=str(error))

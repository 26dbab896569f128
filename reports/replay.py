"""A replayed capture: how errors grow along the layers, the first illegal stage and what explains it, every call."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.diagnosis import Diagnosis, read
from reports.replay_charts import ErrorChart, error_charts
from reports.template import fill
from reports.text import clip_plain

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.parts.replay import ReplayedCall
    from harness.records.record import RunRecord

FIRST_ILLEGAL = "illegal-1"  # its anchor
MOST_ILLEGAL = 30
MOST_CALLS = 1000
MOST_CHANGES = 100


@dataclass(frozen=True)
class Illegal:
    """A call that is wrong, with its anchor and what explains it."""

    anchor: str
    call: ReplayedCall
    diagnosis: Diagnosis | None


def section(record: RunRecord) -> Markup | None:
    """Draw the replay of a record, or nothing."""
    found = record.replay_run
    if found is None:
        return None
    anchors = {id(call): f"illegal-{number}" for number, call in enumerate(found.illegal[:MOST_ILLEGAL], 1)}
    charts: list[tuple[str, list[ErrorChart]]] = [
        ("Error along the layers", error_charts(found.calls, anchors, lambda call: call.error)),
        ("Distance from the baseline", error_charts(found.calls, anchors, lambda call: call.distance)),
    ]
    return fill(
        "replay.html.j2",
        found=found,
        folder=clip_plain(found.folder, 300),
        counts=sorted(Counter(str(call.verdict) for call in found.calls).items()),
        charts=[(title, drawn) for title, drawn in charts if drawn],
        illegal=[
            Illegal(anchors[id(call)], call, read(call.diagnosis)) for call in found.illegal[:MOST_ILLEGAL]
        ],
        illegal_left=max(0, len(found.illegal) - MOST_ILLEGAL),
        changes=found.changes[:MOST_CHANGES],
        changes_left=max(0, len(found.changes) - MOST_CHANGES),
        calls=[(call, anchors.get(id(call), "")) for call in found.calls[:MOST_CALLS]],
        calls_left=max(0, len(found.calls) - MOST_CALLS),
    )

"""Races: the interpreted kernel under many schedules, and which planted mistakes showed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

MOST_MUTATIONS = 400


def section(record: RunRecord) -> Markup | None:
    """Draw the race hunt of a record, or nothing."""
    found = record.races_run
    if found is None:
        return None
    planted = [(hunt.kernel, mutation) for hunt in found.kernels for mutation in hunt.caught]
    planted.sort(key=lambda one: not one[1].survived)
    return fill(
        "races.html.j2",
        found=found,
        planted=planted[:MOST_MUTATIONS],
        left_off=max(0, len(planted) - MOST_MUTATIONS),
    )

"""Errors of the run itself: what went wrong outside any candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

ERRORS_SHOWN = 50


def section(record: RunRecord) -> Markup | None:
    """Draw every error with its full text, or nothing."""
    if not record.errors:
        return None
    return fill(
        "errors.html.j2",
        errors=record.errors[:ERRORS_SHOWN],
        left_off=max(0, len(record.errors) - ERRORS_SHOWN),
    )

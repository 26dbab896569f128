"""Known failures: what is expected to fail, under which issue, and since when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

_FIRST = ("rule", "candidate", "versions", "version", "version_range", "issue", "date")


def section(record: RunRecord) -> Markup | None:
    """Draw the entries as one table; its columns are whatever keys the entries have."""
    if not record.known_failures:
        return None
    keys = dict.fromkeys(key for entry in record.known_failures for key in entry)
    columns = [*(key for key in _FIRST if key in keys), *(key for key in keys if key not in _FIRST)]
    return fill("known.html.j2", columns=columns, entries=record.known_failures)

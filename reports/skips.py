"""What did not run, and why. The same reason is printed once, with everything it kept from running."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reports.template import fill
from reports.view import is_skipped

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

NAMES_SHOWN = 100
REASONS_SHOWN = 200


def section(record: RunRecord) -> Markup | None:
    """Draw the skips by reason, those of whole rules included, or nothing."""
    reasons: dict[str, list[str]] = {}
    for rule in record.rules:
        if is_skipped(rule):
            reasons.setdefault(rule.skipped, []).append(f"{rule.rule} on {rule.candidate}")
    for skip in record.skips:
        names = reasons.setdefault(skip.reason or "no reason was recorded", [])
        if skip.what not in names:
            names.append(skip.what)
    if not reasons:
        return None
    return fill(
        "skips.html.j2",
        reasons=list(reasons.items())[:REASONS_SHOWN],
        left_off=max(0, len(reasons) - REASONS_SHOWN),
        names_shown=NAMES_SHOWN,
    )

"""How often each trap was drawn. A rare trap means that the run says little about what the trap is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

BAR_WIDTH = 120


@dataclass(frozen=True)
class Trap:
    """One row: the trap, how often it was drawn, whether that was too rare, and the length of its bar."""

    name: str
    drawn: int
    missing: bool
    bar: str


def section(record: RunRecord) -> Markup | None:
    """Draw one row a trap, the missing ones first, or nothing if the run counted no traps."""
    counts = {**dict.fromkeys(record.missing_traps, 0), **record.traps}
    if not counts:
        return None
    missing = set(record.missing_traps)
    most = max(1, *counts.values())
    rows = [
        Trap(name, drawn, name in missing, f"{BAR_WIDTH * max(0, drawn) / most:.1f}")
        for name, drawn in sorted(counts.items(), key=lambda item: (item[0] not in missing, item[1], item[0]))
    ]
    return fill("traps.html.j2", traps=rows, missing=len(missing), bar_width=BAR_WIDTH)

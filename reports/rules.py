"""One row a rule: what it found, on how much, judged in which way, how close to the bound, in what time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.template import fill
from reports.text import count
from reports.view import SKIPPED, candidate_names, failure_groups, is_skipped, worst_first

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RuleResult, RunRecord


@dataclass(frozen=True)
class Row:
    """A rule on one candidate, with the anchor of its failures ("" where it has none)."""

    result: RuleResult
    word: str
    anchor: str

    @property
    def is_skipped(self) -> bool:
        """Whether the row has a reason instead of numbers."""
        return self.word == SKIPPED

    @property
    def failing(self) -> str:
        """How many problems failed, known failures counted apart."""
        known = sum(failure.kind == "known" for failure in self.result.failures)
        new = len(self.result.failures) - known
        parts = [(new, "failing problem"), (known, "known failure")]
        return ", ".join(f"{count(number)} {what}{'s' * (number != 1)}" for number, what in parts if number)

    @property
    def above_bound(self) -> bool:
        """Whether the worst ratio is illegal; NaN is."""
        worst = self.result.worst_ratio
        return worst is not None and not worst <= 1

    @property
    def judged(self) -> list[tuple[str, int, str]]:
        """How the elements were judged: (way, count, share), most frequent first."""
        total = sum(self.result.judged.values())
        ordered = sorted(self.result.judged.items(), key=lambda item: (-item[1], item[0]))
        return [(way, number, share(number, total)) for way, number in ordered]


def share(part: int, whole: int) -> str:
    """Return a percentage that never rounds a part up to everything or down to nothing."""
    if whole <= 0:
        return ""
    percent = 100 * part / whole
    if part < whole and percent > 99.9:
        return "over 99.9 %"
    if part > 0 and percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.1f} %".replace(".0 %", " %")


def section(record: RunRecord) -> Markup | None:
    """Draw the table of rules, grouped by candidate, the worst verdict first."""
    if not record.rules:
        return None
    anchors = {id(group.result): group.anchor for group in failure_groups(record)}
    groups = []
    for name in candidate_names(record):
        results = worst_first([rule for rule in record.rules if rule.candidate == name])
        rows = [Row(r, SKIPPED if is_skipped(r) else r.verdict, anchors.get(id(r), "")) for r in results]
        if rows:
            groups.append((name, rows))
    return fill("rules.html.j2", groups=groups)

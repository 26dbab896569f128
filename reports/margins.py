"""How close each stage came to its bound: one histogram a candidate and stage, on a log2 axis of error over bound.

Only of rules in which an interval judged; folded where nothing is above its bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.record import Histogram, RunRecord
from harness.records.ways import has_interval
from reports.charts import HistogramChart, histogram_chart
from reports.template import fill
from reports.view import candidate_names

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Margin:
    """One chart: the stage, the rules whose elements it counts, and the drawing (None: the data do not fit together)."""

    stage: str
    rules: list[str]
    chart: HistogramChart | None


def section(record: RunRecord) -> Markup | None:
    """Draw the histograms, grouped by candidate, or nothing."""
    groups = [(name, margins) for name in candidate_names(record) if (margins := _margins(record, name))]
    if not groups:
        return None
    above = any(m.chart and m.chart.above for _, margins in groups for m in margins)
    return fill("margins.html.j2", groups=groups, is_open=above)


def _margins(record: RunRecord, candidate: str) -> list[Margin]:
    # Histograms of one stage add up across rules only where they have the same bins.
    sums: dict[tuple[str, tuple[float, ...], int], tuple[Histogram, list[str]]] = {}
    for rule in record.rules:
        # Where one value is legal, an error over a bound says no more than the verdict.
        if rule.candidate != candidate or not has_interval(rule.judged):
            continue
        for stage, histogram in rule.histograms.items():
            key = (stage, tuple(histogram.edges), len(histogram.counts))
            empty = Histogram(list(histogram.edges), [0] * len(histogram.counts))
            total, rules = sums.setdefault(key, (empty, []))
            total.counts = [a + b for a, b in zip(total.counts, histogram.counts, strict=True)]
            if histogram.worst is not None and (total.worst is None or histogram.worst > total.worst):
                total.worst, total.worst_at = histogram.worst, histogram.worst_at
            rules.append(rule.rule)
    return [Margin(stage, rules, histogram_chart(total)) for (stage, _, _), (total, rules) in sums.items()]

"""What parallel workers of one run found out, as one record. Standard library only; no torch."""

from __future__ import annotations

import json
from dataclasses import asdict

from harness.records.from_json import build_from_json
from harness.records.record import Histogram, RuleResult, RunRecord, parse_record
from harness.records.ways import add_counts
from harness.verdict import worst


def merge_rules(results: list[RuleResult]) -> list[RuleResult]:
    """Merge results of the same rule and candidate, as several xdist workers produce them."""
    merged: dict[tuple[str, str], RuleResult] = {}
    for result in results:
        key = (result.rule, result.candidate)
        if key not in merged or merged[key].skipped:
            merged[key] = build_from_json(RuleResult, json.loads(json.dumps(asdict(result))), "rule")
        elif not result.skipped:  # judged anywhere is judged
            _merge_rule(merged[key], result)
    return list(merged.values())


def _merge_rule(into: RuleResult, result: RuleResult) -> None:
    """Add what a rule found elsewhere to a result of the same rule and candidate."""
    verdict = worst([into.verdict, result.verdict])
    if verdict is not into.verdict or not into.reason:
        into.reason = result.reason
    into.verdict = verdict
    for name in ("examples", "empty", "powerless", "compared"):
        setattr(into, name, getattr(into, name) + getattr(result, name))
    into.seconds += result.seconds
    for name in ("judged", "oracle", "kernels"):
        add_counts(getattr(into, name), getattr(result, name))
    if result.worst_ratio is not None and (into.worst_ratio is None or result.worst_ratio > into.worst_ratio):
        into.worst_ratio, into.worst_problem = result.worst_ratio, result.worst_problem
    for extent, size in result.extents.items():
        into.extents[extent] = max(size, into.extents.get(extent, 0))
    for stage, histogram in result.histograms.items():
        if stage in into.histograms:
            into.histograms[stage].add(histogram)
        else:
            into.histograms[stage] = Histogram(
                list(histogram.edges), list(histogram.counts), histogram.worst, histogram.worst_at
            )
    into.failures.extend(result.failures)


def merge_records(records: list[RunRecord]) -> RunRecord:
    """Merge the records of parallel workers of one run into the first one's identity."""
    if not records:
        raise ValueError("merge_records: records must not be empty")
    first = parse_record(json.loads(records[0].to_json()), "record")
    for other in records[1:]:
        first.rules.extend(other.rules)
        first.skips.extend(s for s in other.skips if s not in first.skips)
        first.errors.extend(other.errors)
        first.interrupted = first.interrupted or other.interrupted
        first.seconds = max(first.seconds, other.seconds)
        for trap, count in other.traps.items():
            first.traps[trap] = first.traps.get(trap, 0) + count
        known = {c.name: c for c in first.candidates}
        for candidate in other.candidates:
            if candidate.name not in known:
                first.candidates.append(candidate)
            elif candidate.ran and not known[candidate.name].ran:
                first.candidates[first.candidates.index(known[candidate.name])] = candidate
        first.known_failures.extend(k for k in other.known_failures if k not in first.known_failures)
    first.rules = merge_rules(first.rules)
    return first

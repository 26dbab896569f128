"""Seconds of two runs, for `compare`: shown where they differ visibly, never judged, because CI machines are noisy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING

from harness.records.changes import TimingChange

if TYPE_CHECKING:
    from harness.records.parts.gsm8k import Gsm8kRun
    from harness.records.record import RuleResult, RunRecord

FACTOR = 1.25
SECONDS = 1.0
"""A time is listed where it changed by this factor and by this many seconds: chosen, for display only."""

Timed = dict[tuple[str, str], tuple[float, str]]
"""(what, candidate) to seconds and the work done in them."""


def compare_timings(
    before: Sequence[RunRecord], after: Sequence[RunRecord]
) -> tuple[list[TimingChange], int]:
    """Return the times that changed visibly, those that grew most first, and how many did not."""
    then = {k: v for record in before for k, v in _times(record)}
    now = {k: v for record in after for k, v in _times(record)}
    changed = []
    shared = [key for key in then if key in now]
    for key in shared:
        (old, old_work), (new, new_work) = then[key], now[key]
        longer, shorter = max(old, new), min(old, new)
        if longer >= FACTOR * shorter and longer - shorter >= _least(key[0]):
            work = "" if old_work == new_work else f"{old_work}, now {new_work}"
            changed.append(TimingChange(*key, old, new, work))
    changed.sort(key=lambda t: t.before - t.after)
    return changed, len(shared) - len(changed)


def _least(what: str) -> float:
    return 0.05 * SECONDS if what.startswith("median") else SECONDS


def _times(record: RunRecord) -> Iterator[tuple[tuple[str, str], tuple[float, str]]]:
    yield (
        ("whole run", " ".join(record.command[1:2])),
        (record.seconds, f"{sum(map(_ran, record.rules))} results"),
    )
    for rule in record.rules:
        if _ran(rule):
            yield (rule.rule, rule.candidate), (rule.seconds, f"{rule.examples:,} problems")
    run = record.gsm8k_run
    if run is not None:
        yield from _served(run, f"{run.task_name} requests", run.model)
    canary = record.canary_part
    for canary_run in canary.runs if canary else []:
        yield from _served(canary_run, "canary requests", canary_run.candidate)
        if canary_run.ready_seconds is not None:
            yield ("canary server start", canary_run.candidate), (canary_run.ready_seconds, "")
    mutants = record.mutants_run
    if mutants is not None and mutants.faults:
        work = f"{mutants.score.plantings:,} plantings"
        yield ("planted faults", mutants.candidate), (mutants.seconds, work)


def _ran(rule: RuleResult) -> bool:
    return rule.examples > 0


def _served(run: Gsm8kRun, what: str, who: str) -> Iterator[tuple[tuple[str, str], tuple[float, str]]]:
    seconds = run.seconds.get("requests")
    if seconds is not None:
        yield (what, who), (seconds, f"{run.answered:,} answers")
    values = [s.get("latency_s") for s in run.samples if s.get("error") is None]
    numbers = [v for v in values if isinstance(v, (int, float))]
    if numbers:
        yield (f"median latency, {what.removesuffix(' requests')}", who), (median(numbers), "")

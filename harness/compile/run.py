"""One run of `harness compile`, in order: packages, matrix, cache, compiling, measuring slow ones again, comparing."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.candidates.support import Support
from harness.compile.baseline import Baseline, compare, is_slower
from harness.compile.cache import Cache
from harness.compile.case import CompileCase
from harness.compile.matrix import Entry
from harness.compile.packages import Packages, find_packages
from harness.compile.pool import Pool, StartError
from harness.records.parts.compile import (
    CaseResult,
    CompileBaseline,
    CompileChange,
    CompileResult,
    CompileRun,
)
from harness.verdict import Verdict

MEASURED_AGAIN = 3  # compilations of a case that seems slower, before it counts as slower
_MOST_NAMED = 3


class Progress:
    """What a run tells while it goes on. This one says nothing."""

    def cached(self, found: int, total: int) -> None:
        """Tell how many results were known already."""

    def finished(self, done: int, total: int, case: CompileCase, result: CompileResult) -> None:
        """Tell that a case is done."""

    def again(self, cases: int) -> None:
        """Tell that cases are measured again, because they seem slower than before."""


@dataclass
class CompileRequest:
    """What to do.

    Attributes:
        entries: the cases.
        jobs: processes at once.
        timeout: seconds for one case.
        cache: folder of earlier results, or None.
        baseline: what to compare with, or None.
        baseline_name: how the report calls it.
        keep: folder for PTX and cubins; nothing comes out of the cache then. None: they are not kept.
        fresh: compile everything, whatever the cache has.
        whole: the entries are the whole matrix, so what the baseline has beside them is gone.
    """

    entries: list[Entry]
    jobs: int
    timeout: float
    cache: Path | None = None
    baseline: Baseline | None = None
    baseline_name: str = ""
    keep: Path | None = None
    fresh: bool = False
    whole: bool = False


@dataclass
class CompileOutcome:
    """What came out; `part` is for the record."""

    verdict: Verdict = Verdict.UNKNOWN
    reason: str = ""
    part: CompileRun = field(default_factory=CompileRun)
    results: dict[Entry, CompileResult] = field(default_factory=dict)
    packages: Packages = field(default_factory=lambda: Packages({}, ""))
    interrupted: bool = False


def run_compile(
    request: CompileRequest,
    progress: Progress,
    find: Callable[[], tuple[Support, Packages]] = find_packages,
    pool: Callable[[int, float, Path | None], Pool] = Pool,
) -> CompileOutcome:
    """Compile, compare, conclude. An interrupt keeps what is done, in the cache and in the outcome."""
    outcome = CompileOutcome()
    support, outcome.packages = find()
    started, cpu = time.monotonic(), _children_seconds()
    cached, warning = 0, ""
    changes: list[CompileChange] = []
    if not support:
        outcome.reason = f"nothing was compiled: {support.reason}"
    elif not request.entries:
        outcome.reason = "nothing was compiled: no case was selected"
    else:
        cache = Cache(request.cache, outcome.packages)
        try:
            cached = _compile(request, cache, outcome, progress, pool)
        except KeyboardInterrupt:
            outcome.interrupted = True
        except StartError as error:
            outcome.verdict = Verdict.UNKNOWN if error.ours else Verdict.FAIL
            outcome.reason = f"{_versions(outcome.packages)}: {error}"
        changes = _changes(request, outcome.results)
        if not outcome.reason:
            outcome.verdict, outcome.reason = conclude(request, outcome, changes)
        warning = cache.trouble
    outcome.part = replace(
        _part(request, outcome, changes),
        cached=cached,
        seconds=round(time.monotonic() - started, 1),
        cpu_seconds=round(_children_seconds() - cpu, 1),
        warning=warning,
    )
    return outcome


def _compile(
    request: CompileRequest,
    cache: Cache,
    outcome: CompileOutcome,
    progress: Progress,
    pool: Callable[[int, float, Path | None], Pool],
) -> int:
    """Fill `outcome.results`; return how many came out of the cache."""
    total = len(request.entries)
    by_case = {entry.case: entry for entry in request.entries}
    for entry in [] if request.fresh or request.keep else request.entries:
        if known := cache.get(entry.case):
            outcome.results[entry] = known
    cached = len(outcome.results)
    progress.cached(cached, total)

    def finished(case: CompileCase, result: CompileResult) -> None:
        outcome.results[by_case[case]] = result
        cache.put(case, result)
        progress.finished(len(outcome.results), total, case, result)

    missing = [entry.case for entry in request.entries if entry not in outcome.results]
    if missing:
        pool(request.jobs, request.timeout, request.keep).run(missing, finished)

    def measured_again(case: CompileCase, result: CompileResult) -> None:
        best = outcome.results[by_case[case]]
        if result.status == "compiled":
            faster = result if result.effort < best.effort else best
            best = replace(faster, measured=best.measured + 1)
        else:
            best = result
        outcome.results[by_case[case]] = best
        cache.put(case, best)

    # A busy machine makes a compilation seem slow once, hardly three times.
    while slow := [
        entry.case for entry, result in outcome.results.items() if _seems_slower(request, entry, result)
    ]:
        progress.again(len(slow))
        pool(request.jobs, request.timeout, None).run(slow, measured_again)
    return cached


def _seems_slower(request: CompileRequest, entry: Entry, result: CompileResult) -> bool:
    before = request.baseline.results.get(str(entry.case)) if request.baseline else None
    return before is not None and result.measured < MEASURED_AGAIN and is_slower(result, before)


def _changes(request: CompileRequest, results: dict[Entry, CompileResult]) -> list[CompileChange]:
    """Compare every result, the bad changes first."""
    if request.baseline is None:
        known: dict[str, CompileResult] = {}
    else:
        known = request.baseline.results
    found = [
        change
        for entry, result in results.items()
        for change in compare(entry, result, known.get(str(entry.case)))
        if request.baseline is not None or change.kind != "new"
    ]
    if request.whole and request.baseline is not None:
        here = {str(entry.case) for entry in request.entries}
        found += [
            CompileChange(case, "gone", "the matrix no longer has it") for case in sorted(set(known) - here)
        ]
    return sorted(found, key=lambda change: not change.bad)


def conclude(
    request: CompileRequest, outcome: CompileOutcome, changes: list[CompileChange]
) -> tuple[Verdict, str]:
    """Return the verdict on a run and its reason."""
    statuses = Counter(result.status for result in outcome.results.values())
    counts = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    bad = [change for change in changes if change.bad]
    if bad:
        kinds = Counter(change.kind for change in bad)
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        named = "; ".join(f"{change.case}: {change.kind}: {change.text}" for change in bad[:_MOST_NAMED])
        return Verdict.FAIL, f"{words} ({counts}). First: {named}"
    if outcome.interrupted:
        done = f"{len(outcome.results)} of {len(request.entries)}"
        return Verdict.UNKNOWN, f"interrupted after {done} cases ({counts or 'none'})"
    if not statuses["compiled"] and not statuses["refused"]:
        return Verdict.UNKNOWN, f"nothing compiled, as in the baseline ({counts})"
    kinds = Counter(change.kind for change in changes)
    noted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    against = (
        f"as in {request.baseline_name} ({_versions_text(request.baseline.versions)})"
        if request.baseline is not None
        else "compared with nothing"
    )
    return Verdict.PASS, f"{counts}, {against}" + (f"; noted: {noted}" if noted else "")


def _part(request: CompileRequest, outcome: CompileOutcome, changes: list[CompileChange]) -> CompileRun:
    before = request.baseline
    return CompileRun(
        verdict=outcome.verdict.value,
        reason=outcome.reason,
        versions=outcome.packages.versions,
        baseline=None
        if before is None
        else CompileBaseline(request.baseline_name, before.versions, before.made),
        jobs=request.jobs,
        wanted=len(request.entries),
        changes=changes,
        cases=[
            CaseResult(**vars(result), case=str(entry.case), origin=entry.origin, guard=entry.guard)
            for entry, result in outcome.results.items()
        ],
    )


def _versions(packages: Packages) -> str:
    return _versions_text(packages.versions)


def _versions_text(versions: dict[str, str]) -> str:
    wanted = {name: v for name, v in versions.items() if name in {"flashinfer-python", "nvidia-cutlass-dsl"}}
    return ", ".join(f"{name} {version}" for name, version in wanted.items())


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system

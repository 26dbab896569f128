"""Cross-compilation: what changed against the baseline, what each kernel costs, which features of the hardware it uses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.parts.compile import CaseResult
    from harness.records.record import RunRecord

MOST_CHANGES = 200
MOST_CASES = 1000


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture, all its cases together."""

    name: str
    statuses: str
    registers: str
    shared: str
    spilling: int
    seconds: float
    slowest: float


def section(record: RunRecord) -> Markup | None:
    """Draw the cross-compilation of a record, or nothing."""
    found = record.compile_run
    if found is None:
        return None
    return fill(
        "compile.html.j2",
        found=found,
        statuses=sorted(Counter(case.status for case in found.cases).items()),
        changes=found.changes[:MOST_CHANGES],
        changes_left=max(0, len(found.changes) - MOST_CHANGES),
        kernels=_kernels(found.cases),
        features=_features(found.cases),
        cases=found.cases[:MOST_CASES],
        cases_left=max(0, len(found.cases) - MOST_CASES),
    )


def _kernels(cases: list[CaseResult]) -> list[Kernel]:
    groups: dict[str, list[CaseResult]] = {}
    for case in cases:
        groups.setdefault(case.case.partition(",")[0], []).append(case)
    return [_kernel(name, group) for name, group in groups.items()]


def _kernel(name: str, group: list[CaseResult]) -> Kernel:
    compiled = [case for case in group if case.status == "compiled"]
    statuses = Counter(case.status for case in group)
    seconds = [case.cpu_seconds for case in compiled]
    return Kernel(
        name,
        ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())),
        _range([case.registers for case in compiled]),
        _range([case.shared_bytes for case in compiled if case.shared_bytes is not None]),
        sum(1 for case in compiled if case.spill_bytes or case.stack_bytes),
        sum(seconds),
        max(seconds, default=0.0),
    )


def _range(values: list[int]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _features(cases: list[CaseResult]) -> list[tuple[str, int, str]]:
    """Return (feature, cases that use it, their kernels), most used first."""
    users: dict[str, list[str]] = {}
    for case in cases:
        for feature in case.features:
            users.setdefault(feature, []).append(case.case.partition("@")[0])
    return [
        (feature, len(names), ", ".join(dict.fromkeys(names)))
        for feature, names in sorted(users.items(), key=lambda item: (-len(item[1]), item[0]))
    ]

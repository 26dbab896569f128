"""Cross-compilation: what changed against the baseline, what each kernel costs, which features of the hardware it uses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.template import fill

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RunRecord

Json = dict[str, Any]

# The record leaves out what says nothing.
_UNSAID: Json = {
    "case": "", "status": "", "origin": "", "reason": "", "registers": 0, "cpu_seconds": 0.0,
    "stack_bytes": 0, "spill_bytes": None, "shared_bytes": None, "features": {},
}  # fmt: skip
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
    """Draw the compile stage of a record, or nothing."""
    found = record.compile
    if not found:
        return None
    cases = [{**_UNSAID, **case} for case in _list(found.get("cases")) if isinstance(case, dict)]
    changes = [change for change in _list(found.get("changes")) if isinstance(change, dict)]
    statuses = Counter(str(case["status"]) for case in cases)
    return fill(
        "compile.html.j2",
        found=found,
        baseline=found.get("baseline") or {},
        statuses=sorted(statuses.items()),
        changes=changes[:MOST_CHANGES],
        changes_left=max(0, len(changes) - MOST_CHANGES),
        kernels=_kernels(cases),
        features=_features(cases),
        cases=cases[:MOST_CASES],
        cases_left=max(0, len(cases) - MOST_CASES),
    )


def _kernels(cases: list[Json]) -> list[Kernel]:
    groups: dict[str, list[Json]] = {}
    for case in cases:
        groups.setdefault(str(case["case"]).partition(",")[0], []).append(case)
    return [_kernel(name, group) for name, group in groups.items()]


def _kernel(name: str, group: list[Json]) -> Kernel:
    compiled = [case for case in group if case["status"] == "compiled"]
    statuses = Counter(str(case["status"]) for case in group)
    seconds = [float(case["cpu_seconds"]) for case in compiled]
    return Kernel(
        name,
        ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())),
        _range([int(case["registers"]) for case in compiled]),
        _range([int(case["shared_bytes"]) for case in compiled if case["shared_bytes"] is not None]),
        sum(1 for case in compiled if case["spill_bytes"] or case["stack_bytes"]),
        sum(seconds),
        max(seconds, default=0.0),
    )


def _range(values: list[int]) -> str:
    if not values:
        return ""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _features(cases: list[Json]) -> list[tuple[str, int, str]]:
    """Return (feature, cases that use it, their kernels), most used first."""
    users: dict[str, list[str]] = {}
    for case in cases:
        for feature in case["features"] or {}:
            users.setdefault(str(feature), []).append(str(case["case"]).partition("@")[0])
    return [
        (feature, len(names), ", ".join(dict.fromkeys(names)))
        for feature, names in sorted(users.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

"""A fault of dispatch or combine planted around ranks that are processes: whether it is caught, and what a diagnosis names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.faults.fault import Fault, all_faults
from harness.faults.named import plant
from harness.running.judge import Judge

FAULTS = {name: fault for name, fault in all_faults().items() if fault.category in {"dispatch", "combine"}}


def needed(fault: Fault) -> str:
    """The transport without which a candidate cannot have a fault, "" where any will do."""
    return next((name for name in ("nvfp4", "logfmt") if fault.name.startswith(name)), "")


def carries(candidate: Any, fault: Fault) -> bool:
    """Whether a candidate has the transport that a fault is about."""
    has = {"", *candidate.traits.transports, *candidate.traits.combine_transports}
    return needed(fault) in has


def caught_and_named(candidate: Any, name: str, problems: Sequence[str]) -> tuple[str, list[str]]:
    """Return the first problem on which a planted fault is caught and named, and what the diagnosis names there.

    On some problems another fault does the very same. Where it is named on none, the last one on which it is caught; ""
    where there is none.
    """
    fault, judge = FAULTS[name], Judge(plant(candidate, name), threads=1, probe=False)
    where, found = "", []
    for problem in problems:
        if not judge.judge(fault.killed_by, problem).illegal:
            continue
        where = problem
        found = [one["fault"] for one in judge.diagnose(fault.killed_by, problem, "harness diagnose")]
        if {name, *fault.same_as} & set(found):
            break
    return where, found

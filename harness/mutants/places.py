"""Which candidate a fault is planted in, or why it cannot be."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from harness.candidates import load_candidate, stages_of
from harness.faults import Fault
from harness.known_failures import default_path, load_known_failures
from harness.rules import RULE_IDS, find_rules

MODEL, CONTROL = "physical", "eager"


@dataclass(frozen=True)
class Place:
    """Where a fault goes: the name of a candidate, or "" and the reason."""

    candidate: str = ""
    reason: str = ""


def place_of(fault: Fault, candidate: str) -> Place:
    """Return where a fault is planted.

    `physical` has some mistakes of the kernels that it models; a fault that would add nothing to one of those is planted
    in `eager` instead. Around a user's kernel it is reported as not planted.

    Args:
        fault: what is planted.
        candidate: the name that was asked for.
    """
    reason = obstacle(fault, candidate)
    if reason and candidate == MODEL and not obstacle(fault, CONTROL):
        return Place(CONTROL)
    return Place("", reason) if reason else Place(candidate)


def obstacle(fault: Fault, candidate: str) -> str:
    """Return why a fault cannot be planted in a candidate and judged by its rule, or ""."""
    stages = _stages(candidate)
    if not set(fault.stages) & set(stages):
        return f"the candidate has no {' or '.join(fault.stages)}"
    if fault.killed_by not in RULE_IDS:
        return f"there is no rule {fault.killed_by}"
    if missing := [s for s in find_rules([fault.killed_by])[0].stages if s not in stages]:
        return f"{fault.killed_by} needs {', '.join(missing)}"
    for known in load_known_failures(default_path()):
        if (known.rule, known.candidate) == (fault.killed_by, candidate) and known.applies():
            return f"the candidate itself fails {known.rule}, as known: {known.issue}"
    return ""


@functools.cache
def _stages(candidate: str) -> list[str]:
    return stages_of(load_candidate(candidate))

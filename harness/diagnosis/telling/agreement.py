"""Two failing problems of a rule: the one that is shown, and a larger one with more to go by. Imports no torch.

A diagnosis is about what is shown. The larger problem may have failed for another reason: what explains it is said only
where it explains what is shown as well; else it is a failure of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Finding = dict[str, Any]
_NEARLY_ALL = 0.9  # of the illegal elements, for a fault to explain them


def names_of(finding: Finding) -> list[str]:
    """Return the faults that explain (nearly) all of what a finding is about."""
    if not finding["fault"] or finding.get("explained", 0.0) < _NEARLY_ALL:
        return []
    return [finding["fault"], *finding.get("same_as", ()), *finding.get("also", ())]


def is_claimed(found: Sequence[Finding]) -> bool:
    """Return whether a diagnosis names a fault without doubt."""
    return bool(found) and bool(found[0]["fault"]) and not found[0].get("weak")


def agree(shown: Sequence[Finding], larger: Sequence[Finding]) -> Finding | None:
    """Return the finding about the larger problem whose fault explains what is shown; None where there is none."""
    names = set(names_of(shown[0])) if shown else set()
    named = [f for f in larger if f["fault"] and not f.get("alternative")]
    return next((f for f in named if names & {f["fault"], *f.get("same_as", ())}), None)


def combined(shown: Sequence[Finding], larger: Sequence[Finding], problem: str) -> list[Finding]:
    """Return the diagnosis of what is shown, with what the larger problem adds to it or takes from it.

    Args:
        shown: the diagnosis of the problem that is shown.
        larger: that of the larger one; without findings, or with one that says so, where it did not fail again.
        problem: the larger one's string.
    """
    if not shown or shown[0].get("raised") or shown[0].get("passed"):
        return list(shown)
    if not larger or larger[0].get("raised") or larger[0].get("passed"):
        return list(shown)
    if (same := agree(shown, larger)) is not None:
        more = same["evidence"].removeprefix("reproduces ")
        both = f"{shown[0]['evidence'].partition(';')[0]}; on {problem} {more}"
        return [{**same, "evidence": both}, *(f for f in larger if f is not same)]
    if is_claimed(larger):  # another failure: nothing about this one
        return list(shown) if is_claimed(shown) else _nothing(shown)
    doubt = f"{problem} fails as well, and this does not explain it"
    # A factor was measured on what is shown; where several faults explain that, the larger problem refutes them alike.
    if is_claimed(shown) and not shown[0].get("measured") and not shown[0].get("also"):
        first = {**shown[0], "weak": doubt, "evidence": f"{shown[0]['evidence']}; weak: {doubt}"}
        return [first, *shown[1:]]
    return [*_nothing(shown), *({**f, "problem": problem} for f in _nothing(larger))]


def _nothing(found: Sequence[Finding]) -> list[Finding]:
    """Return a diagnosis without what is weak in it: the pattern alone."""
    if not found[0]["fault"]:
        return list(found[:1])
    pattern = [words for f in found if not f.get("alternative") for words in f.get("pattern", ())]
    count = sum(f["elements"] for f in found if not f.get("alternative"))
    return [
        {
            "fault": "",
            "title": "no known fault explains it",
            "explained": 0.0,
            "elements": count,
            "evidence": f"{count:,} illegal elements, of which no fault explains more than a part on every problem",
            "pattern": pattern,
            "command": found[0].get("command", ""),
        }
    ]

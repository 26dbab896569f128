"""What a failure's diagnosis says, in the order in which a reader asks: what, where, how sure, who else had it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

MOST_FINDINGS = 10
MOST_THREADS = 20
MOST_LINES = 20

_KNOWN = frozenset(
    (
        *("fault", "title", "place", "evidence", "strength", "pattern", "bugs", "thread"),
        *("same_as", "alternative", "simulated", "command", "trace"),
    )
)
# Figures behind the words: they are in the record for programs.
_FOR_PROGRAMS = frozenset(
    ("where", "explained", "elements", "of", "also", "category", "measured", "by_chance", "weak", "raised")
)  # `evidence` says what is weak, too


@dataclass(frozen=True)
class Finding:
    """One explanation. `fault` is "" where none is known; then `pattern` says what the errors have in common."""

    fault: str
    title: str
    strength: str
    place: str
    evidence: list[str]
    pattern: list[str]
    threads: list[str]
    same_as: list[str]
    simulated: str
    trace: str
    command: str
    is_weak: bool = False
    others: list[tuple[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Diagnosis:
    """The explanations of one failure: those that together explain it, and what would explain parts of it as well."""

    findings: list[Finding]
    alternatives: list[Finding]

    @property
    def command(self) -> str:
        """What repeats the diagnosis, "" if it does not say."""
        return next((f.command for f in (*self.findings, *self.alternatives) if f.command), "")


def read(found: list[Json]) -> Diagnosis | None:
    """Return the diagnosis of a failure, None if there is none."""
    shown = [(bool(entry.get("alternative")), _finding(entry)) for entry in found[:MOST_FINDINGS]]
    if not shown:
        return None
    return Diagnosis([f for other, f in shown if not other], [f for other, f in shown if other])


def _finding(entry: Json) -> Finding:
    threads = _words(entry.get("bugs")) + _words(entry.get("thread"))
    title = _word(entry.get("title")) or _word(entry.get("fault")) or "an explanation without a name"
    others = [(name, value) for name, value in entry.items() if name not in _KNOWN | _FOR_PROGRAMS]
    return Finding(
        fault=_word(entry.get("fault")),
        title=("perhaps: " if entry.get("weak") else "") + title,
        strength=_word(entry.get("strength")),
        place=_word(entry.get("place")),
        evidence=_words(entry.get("evidence")),
        pattern=_words(entry.get("pattern"))[:MOST_LINES],
        threads=list(dict.fromkeys(threads))[:MOST_THREADS],
        same_as=_words(entry.get("same_as"))[:MOST_LINES],
        simulated=_word(entry.get("simulated")),
        trace=_word(entry.get("trace")),
        command=_word(entry.get("command")),
        is_weak=bool(entry.get("weak")),
        others=others,
    )


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    return [str(item) for item in value] if isinstance(value, list) else []


def telling(found: list[Diagnosis | None]) -> tuple[int, list[str]]:
    """Return which of several failures of one candidate to look at, and what is not told apart from its explanation.

    One mistake fails several rules, and one rule may tell apart what another does not: the fault that would explain
    most of the failures, of the first failure that is explained by it.

    Args:
        found: the diagnosis of each failure, in order; None where it has none.

    Returns:
        The place in `found`, 0 where nothing is explained; faults that would explain as many of the failures.
    """
    named = [_faults(diagnosis) for diagnosis in found]
    votes = Counter(fault for faults in named for fault in faults)
    if not votes:
        explained = (i for i, d in enumerate(found) if d and any(one.fault for one in d.findings))
        return next(explained, 0), []
    most = max(votes.values())
    place = next(i for i, faults in enumerate(named) if faults and votes[faults[0]] == most)
    return place, [fault for fault in named[place][1:] if votes[fault] == most]


def _faults(diagnosis: Diagnosis | None) -> list[str]:
    """Return the fault that explains a failure and those that were not told apart from it, weak explanations left out."""
    first = next((one for one in diagnosis.findings if one.fault), None) if diagnosis else None
    return [first.fault, *first.same_as] if first and not first.is_weak else []

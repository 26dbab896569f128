"""How elements were judged, in four kinds: what the words of `RuleResult.judged` leave to the candidate.

A PASS says most where one value was legal; an error over its bound says something only where an interval judged.
Standard library only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.records.record import RuleResult

ONE, FEW, INTERVAL, ANY = "one value", "a few values", "an interval", "any value"

KINDS = {
    ONE: "only one value was legal: equal bits, or one scale, code or sum that follows from the inputs",
    FEW: "two or a few values were legal, such as either side of a tie that cannot be observed",
    INTERVAL: "every value within a bound that was computed from the inputs",
    ANY: "nothing depends on the value, such as a code under a scale of zero",
}
"""The kinds, and what they mean."""

_WORDS = {
    INTERVAL: re.compile(r"\b(bound|interval|range|within|leaves several|a number above)\b"),
    ANY: re.compile(r"\bany code\b"),
    FEW: re.compile(r"\b(two legal|ties either way|with or without|of its own)\b"),
}
_IS_ONE = re.compile(r"(bit equality|one |equal)")


def kind_of(way: str) -> str:
    """Return the kind of one way of judging; what names neither a bound nor several values had one that was legal."""
    if _IS_ONE.match(way):
        return ONE
    return next((kind for kind, words in _WORDS.items() if words.search(way)), ONE)


def by_kind(judged: Mapping[str, int]) -> dict[str, int]:
    """Return how many elements were judged in each kind, in the order of `KINDS`; kinds without elements are left out."""
    found: Counter[str] = Counter()
    for way, number in judged.items():
        found[kind_of(way)] += number
    return {kind: found[kind] for kind in KINDS if found[kind]}


def add_counts(into: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts by word to others, in place."""
    for word, number in more.items():
        into[word] = into.get(word, 0) + number


def shares(counts: Mapping[str, int]) -> str:
    """Return each word with its share of all: "one value 99.2 %, an interval 0.8 %"."""
    total = sum(counts.values())
    return ", ".join(f"{word} {share(number, total)}" for word, number in counts.items() if number)


def oracle_of(rules: Iterable[RuleResult]) -> dict[str, int]:
    """Return how many elements of all rules had dot products that were exact in each arithmetic, the commonest first."""
    total: Counter[str] = Counter()
    for rule in rules:
        total.update(rule.oracle)
    return dict(total.most_common())


def has_interval(judged: Mapping[str, int]) -> bool:
    """Return whether an error over its bound says anything: where an interval judged, or the record does not say how."""
    return not judged or INTERVAL in by_kind(judged)


def share(part: int, whole: int) -> str:
    """Return a percentage that never rounds a part up to everything or down to nothing."""
    if whole <= 0:
        return ""
    percent = 100 * part / whole
    if part < whole and percent > 99.9:
        return "over 99.9 %"
    if part > 0 and percent < 0.1:
        return "under 0.1 %"
    return f"{percent:.1f} %".replace(".0 %", " %")

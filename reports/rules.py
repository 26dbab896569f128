"""One line a rule: its verdict, on how much, judged in which way. Lines of rules that passed are folded."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.ways import KINDS, by_kind, has_interval, kind_of, oracle_of, share, shares
from reports.template import fill
from reports.text import count
from reports.view import SKIPPED, candidate_names, failure_groups, is_skipped, rule_anchor, worst_first

if TYPE_CHECKING:
    from markupsafe import Markup

    from harness.records.record import RuleResult, RunRecord


@dataclass(frozen=True)
class Row:
    """A rule on one candidate: its own anchor, and that of its failures ("" where it has none)."""

    result: RuleResult
    word: str
    anchor: str
    failures: str

    @property
    def is_skipped(self) -> bool:
        """Whether the row has a reason instead of numbers."""
        return self.word == SKIPPED

    @property
    def is_open(self) -> bool:
        """Whether its numbers are shown at once: where it says something else than PASS."""
        return self.word not in {SKIPPED, "PASS"}

    @property
    def failing(self) -> str:
        """How many problems failed, known failures counted apart."""
        known = sum(failure.kind == "known" for failure in self.result.failures)
        new = len(self.result.failures) - known
        parts = [(new, "failing problem"), (known, "known failure")]
        return ", ".join(f"{count(number)} {what}{'s' * (number != 1)}" for number, what in parts if number)

    @property
    def judged(self) -> str:
        """Of how many elements what was legal: "one value 99.2 %, an interval 0.8 %"."""
        return shares(by_kind(self.result.judged))

    @property
    def has_worst(self) -> bool:
        """Whether the worst error over its bound says anything: where an interval judged."""
        return self.result.worst_ratio is not None and has_interval(self.result.judged)

    @property
    def above_bound(self) -> bool:
        """Whether the worst ratio is illegal; NaN is."""
        worst = self.result.worst_ratio
        return worst is not None and not worst <= 1


@dataclass(frozen=True)
class Kind:
    """One line of the legend: a kind of judging, its share of all elements, its meaning."""

    name: str
    share: str
    meaning: str


@dataclass(frozen=True)
class Way:
    """One way of judging in the words of the rules that judged so."""

    words: str
    kind: str
    elements: int
    rules: list[str]


def all_judged(record: RunRecord) -> dict[str, int]:
    """Return how many elements of the whole run were judged in each way."""
    total: Counter[str] = Counter()
    for rule in record.rules:
        total.update(rule.judged)
    return dict(total)


def section(record: RunRecord) -> Markup | None:
    """Draw the lines of the rules, grouped by candidate, the worst verdict first, and the legend of their words."""
    if not record.rules:
        return None
    anchors = {id(group.result): group.anchor for group in failure_groups(record)}
    taken: set[str] = set()
    groups = []
    for name in candidate_names(record):
        rows = []
        for result in worst_first([rule for rule in record.rules if rule.candidate == name]):
            word = SKIPPED if is_skipped(result) else result.verdict
            rows.append(Row(result, word, _free(result, taken), anchors.get(id(result), "")))
        if rows:
            groups.append((name, rows))
    oracle = shares(oracle_of(record.rules))
    return fill("rules.html.j2", groups=groups, kinds=_kinds(record), ways=_ways(record), oracle=oracle)


def _free(result: RuleResult, taken: set[str]) -> str:
    """Return the anchor of a rule's line; names of which only other letters differ get a number."""
    anchor = first = rule_anchor(result.rule, result.candidate)
    number = 1
    while anchor in taken:
        number += 1
        anchor = f"{first}-{number}"
    taken.add(anchor)
    return anchor


def _kinds(record: RunRecord) -> list[Kind]:
    found = by_kind(all_judged(record))
    total = sum(found.values())
    return [Kind(kind, share(number, total), KINDS[kind]) for kind, number in found.items()]


def _ways(record: RunRecord) -> list[Way]:
    rules: dict[str, list[str]] = defaultdict(list)
    for rule in record.rules:
        for way in rule.judged:
            if rule.rule not in rules[way]:
                rules[way].append(rule.rule)
    total = all_judged(record)
    order = list(KINDS)
    ways = [Way(way, kind_of(way), number, rules[way]) for way, number in total.items()]
    return sorted(ways, key=lambda way: (order.index(way.kind), -way.elements, way.words))

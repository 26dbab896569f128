"""What several sections have to agree on: which rules count as skipped, a candidate's verdict, the failures' anchors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.verdict import Verdict, worst

if TYPE_CHECKING:
    from harness.records.record import CandidateRun, Failure, RuleResult, RunRecord

FAILURES_SHOWN = 10
"""Failing problems that are shown for one rule on one candidate; they are usually the same fault."""

NOT_RUN = "NOT RUN"
SKIPPED = "SKIPPED"

_ORDER = {Verdict.FAIL: 0, Verdict.UNKNOWN: 1, Verdict.PASS: 2}


_NOT_IN_ANCHORS = re.compile(r"[^A-Za-z0-9_.@+-]+")


def rule_anchor(rule: str, candidate: str) -> str:
    """Return the id of a rule's line, the same in every report, so that other pages can link to it."""
    return _NOT_IN_ANCHORS.sub("-", f"rule-{rule[:60]}-{candidate[:120]}")


def is_skipped(rule: RuleResult) -> bool:
    """Return whether the rule ran on nothing, for a reason it gives; its verdict then says nothing."""
    return bool(rule.skipped) and rule.examples == 0


def worst_first(rules: list[RuleResult]) -> list[RuleResult]:
    """Return the rules as FAIL, UNKNOWN, PASS, skipped, each group in the record's order."""
    return sorted(rules, key=lambda rule: len(_ORDER) if is_skipped(rule) else _ORDER[rule.verdict])


def candidate_names(record: RunRecord) -> list[str]:
    """Return the candidates in the record's order, then those that only rules mention."""
    return list(dict.fromkeys([*(c.name for c in record.candidates), *(r.candidate for r in record.rules)]))


def candidate_word(record: RunRecord, candidate: CandidateRun) -> str:
    """Return the worst verdict of a candidate's rules, or that it did not run."""
    verdicts = [r.verdict for r in record.rules if r.candidate == candidate.name and not is_skipped(r)]
    if not candidate.ran and not verdicts:
        # A candidate that was asked for and cannot run makes the run UNKNOWN; any other stands outside the verdict.
        return Verdict.UNKNOWN if candidate.requested else NOT_RUN
    return worst(verdicts)


@dataclass(frozen=True)
class FailureGroup:
    """The failing problems of one rule on one candidate."""

    anchor: str
    result: RuleResult
    shown: list[Failure]
    left_off: int


def failure_groups(record: RunRecord) -> list[FailureGroup]:
    """Return one group for each rule with failures, those with nothing but known failures last."""
    failing = [rule for rule in worst_first(record.rules) if rule.failures]
    failing.sort(key=_only_known)
    groups = []
    for number, rule in enumerate(failing, start=1):
        ordered = sorted(rule.failures, key=lambda failure: failure.kind == "known")
        kept = ordered[:FAILURES_SHOWN]
        groups.append(FailureGroup(f"failure-{number}", rule, kept, len(ordered) - len(kept)))
    return groups


def _only_known(rule: RuleResult) -> bool:
    return all(failure.kind == "known" for failure in rule.failures)

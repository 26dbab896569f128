"""Every rule on one candidate: the one loop behind `harness check`, a pytest session and `conformance`. No torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.candidates.protocol import STAGES
from harness.problems.problem import Problem
from harness.records.record import RuleResult, RunRecord, Skip
from harness.rules import Rule
from harness.running.known_failures import KnownFailure, apply_known_failures, is_known
from harness.running.outcome import Status
from harness.running.runner import RuleRun
from harness.running.session import Session
from harness.running.settings import RunSettings


@dataclass(frozen=True)
class RuleFindings:
    """What came of one rule on one candidate.

    Attributes:
        rule: which rule.
        candidate: name of the candidate.
        skipped: why the rule was not judged, "" where it was.
        result: what it found; None where the candidate lacks a stage that the rule needs.
        traps: how often each trap was drawn.
        known: entries of known_failures.toml that met the result, see `apply_known_failures`.
    """

    rule: Rule
    candidate: str
    skipped: str = ""
    result: RuleResult | None = None
    traps: Counter[str] = field(default_factory=Counter)
    known: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, record: RunRecord) -> None:
        """Add them to a record."""
        if self.result is not None:
            record.rules.append(self.result)
        if self.skipped:
            record.skips.append(Skip(f"{self.rule.id} on {self.candidate}", self.skipped))
        record.known_failures += self.known
        for trap, count in self.traps.items():
            record.traps[trap] = record.traps.get(trap, 0) + count


def judge_rules(
    session: Session,
    rules: Sequence[Rule],
    settings: RunSettings,
    *,
    problem: Problem | None = None,
    known: Sequence[KnownFailure] = (),
    rule_seconds: float = 0,
) -> Iterator[RuleFindings]:
    """Judge a candidate by one rule after the other.

    Args:
        session: where the candidate lives.
        rules: which rules, in which order.
        settings: how much; what is left until its deadline is shared evenly among the rules that are left.
        problem: judge only this one, without drawing any.
        known: failures that are known and accepted.
        rule_seconds: most time of one rule, 0 for no limit.

    Yields:
        What came of each rule, as soon as it is through.

    Raises:
        InternalError: the harness itself failed while judging.
    """
    stages, lost = session.describe().stages, ""
    for number, rule in enumerate(rules):
        if missing := [stage for stage in rule.stages if stage not in stages]:
            yield RuleFindings(rule, settings.candidate, f"the candidate has no {', '.join(missing)}")
            continue
        now = time.monotonic()
        share = (settings.deadline - now) / (len(rules) - number)
        deadline = now + min(share, rule_seconds or share)
        # Of a failure that is expected the cause is known, and stands in the list.
        expected = problem is None and is_known(rule.id, settings.candidate, known)
        run = RuleRun(rule, session, replace(settings, deadline=deadline, diagnosed=not expected))
        if lost:
            result = run.left_out(f"not judged: {lost}")
        elif known_stub := _stub_among(rule, stages, session.left_out):
            result = run.left_out(f"{known_stub} is not implemented: see {session.left_out[known_stub]}")
        else:
            result = run.draw() if problem is None else run.repeat(problem)
        lost = lost or _rank_lost(result)
        if run.not_implemented:
            session.left_out[run.not_implemented] = rule.id
        met = apply_known_failures([result], known, alarm=problem is None)
        yield RuleFindings(rule, settings.candidate, result.skipped, result, run.traps, met)


def _rank_lost(result: RuleResult) -> str:
    """Return which rank died or hangs, and where, "" while all are there: nothing is judged after that."""
    kind = f"{Status.RANK_LOST}: "
    lost = (failure for failure in result.failures if failure.message.startswith(kind))
    return next((f"{f.message.splitlines()[0]}, in {f.rule} on {f.problem}" for f in lost), "")


def _stub_among(rule: Rule, stages: Sequence[str], left_out: Mapping[str, str]) -> str:
    """Return a stage that is not implemented and without which the rule has nothing to judge, or ""."""
    if rule.stages:
        return next((stage for stage in rule.stages if stage in left_out), "")
    kernels = [stage for stage in stages if stage in STAGES]  # such a rule takes those that there are
    return kernels[0] if kernels and left_out.keys() >= set(kernels) else ""

"""One shard of a run: it judges its own problems of the plan and keeps every answer, for whoever merges. Imports no torch.

It takes the way of one run in which the other shards' problems are all right. Where one of its own fails, it is shrunk and
explained here, where the candidate is; of several shards that found one, the merged run keeps the first of the plan.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

from harness.records.parts.sharing import Answer, ExplainedFailure, ShardCandidate
from harness.rules import find_rules
from harness.running.known_failures import KnownFailure, settle
from harness.running.outcome import Description, Outcome, Status
from harness.running.session import Session
from harness.running.shared.plan import Plan

Key = tuple[str, str, tuple[str, ...]]  # rule, problem, stages that are left out


class ShardSession:
    """As harness.running.session.Session: answers what is its own by another session, and keeps it.

    Args:
        session: where the candidate lives.
        plan: of the shard.
    """

    def __init__(self, session: Session, plan: Plan) -> None:
        self.left_out = session.left_out  # the same object: what is found missing here is missing there
        self._session, self._plan = session, plan
        self._failing = ""  # rule of which a problem failed: from then on all that it asks is judged here
        self._answers: dict[Key, list[Outcome]] = {}
        self._explained: list[ExplainedFailure] = []

    def describe(self) -> Description:
        """Return traits, measurements and stages."""
        return self._session.describe()

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:
        """Judge a problem, ELSEWHERE where it is another shard's."""
        (rule,) = find_rules([rule_id])
        if self._failing != rule_id and not self._plan.owns(rule, problem):
            return Outcome(Status.ELSEWHERE)
        outcome = self._kept(rule_id, problem, seconds)
        if outcome.fails and not outcome.lost:
            self._failing = rule_id
        if outcome.status is Status.NOT_IMPLEMENTED and not rule.stages:
            self._judge_the_others(rule_id, problem, seconds, outcome.stage)
        return outcome

    def _judge_the_others(self, rule_id: str, problem: str, seconds: float, stage: str) -> None:
        """Judge a problem without the stage that is not implemented: by the merged run another rule may have found that out."""
        added: list[str] = []
        while stage and stage not in self.left_out:
            self.left_out[stage] = ""
            added.append(stage)
            stage = self._kept(rule_id, problem, seconds).stage
        for each in added:
            del self.left_out[each]

    def _kept(self, rule_id: str, problem: str, seconds: float) -> Outcome:
        started = time.monotonic()
        outcome = self._session.judge(rule_id, problem, seconds)
        if not outcome.seconds:
            outcome = replace(outcome, seconds=time.monotonic() - started)
        self._answers.setdefault((rule_id, problem, tuple(self.left_out)), []).append(outcome)
        return outcome

    def diagnose(
        self, rule_id: str, problem: str, command: str, seconds: float, likely: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return which known faults explain a failure, and keep it."""
        diagnosis = self._session.diagnose(rule_id, problem, command, seconds, likely)
        self._explained.append(ExplainedFailure(rule_id, problem, diagnosis))
        return diagnosis

    def close(self) -> None:
        """End the candidate."""
        self._session.close()

    def found(self, name: str, known: Sequence[KnownFailure]) -> ShardCandidate:
        """Return what the record of the shard keeps of a candidate."""
        return ShardCandidate(
            name,
            short(self.describe()),
            [
                Answer(rule, problem, list(without), [short(outcome) for outcome in outcomes])
                for (rule, problem, without), outcomes in self._answers.items()
            ],
            list(self._explained),
            [settle(entry) for entry in known if entry.candidate == name],
        )


def short(value: Any) -> Any:
    """Return a value as JSON has it, its dataclasses without the fields that are at their default."""
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: (getattr(value, field.name), _default(field)) for field in fields(value)}
        return {name: short(is_) for name, (is_, default) in named.items() if is_ != default}
    if isinstance(value, dict):
        return {key: short(each) for key, each in value.items()}
    return [short(each) for each in value] if isinstance(value, list | tuple) else value


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default

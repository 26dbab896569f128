"""The record of one run from the records of its shards: the run is read again from their answers. Imports no torch.

`RuleRun` asks what it asks in one run, in the same order, and each problem is answered by the shard that judged it. Nothing
is added up: counts, traps, power, failures and verdicts are made here as one process makes them.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.candidates import ALL_STAGES
from harness.problems.profiles import find_profile
from harness.problems.shapes import ModelShape
from harness.records.from_json import build_from_json
from harness.records.parts.sharing import ShardCandidate, ShardPart, Sharing
from harness.records.record import CandidateRun, RunRecord
from harness.rules import RULES, find_rules
from harness.running.conclusion import conclude, trap_floor
from harness.running.known_failures import settled
from harness.running.outcome import Description, Outcome, Status
from harness.running.rules import judge_rules
from harness.running.settings import RunSettings
from harness.running.shared.plan import Plan
from harness.running.shared.shards import Key
from harness.running.shared.unlike import description_of, refuse_unlike, shard_of

Answers = dict[Key, list[Outcome]]


class MergedSession:
    """As harness.running.session.Session: answers by what shards found.

    Args:
        found: by number of the shard, what it found out about the candidate.
        of: how many shards there are.

    Attributes:
        unanswered: problems that no shard judged.
    """

    def __init__(self, found: Mapping[int, ShardCandidate], of: int) -> None:
        self.left_out: dict[str, str] = {}
        self.unanswered: list[str] = []
        first = next(iter(found.values()))
        self._described = description_of(first)
        self._of = of
        self._answers = {number: _answers_of(each) for number, each in found.items()}
        self._explained = {
            (number, each.rule, each.problem): each.diagnosis
            for number, one in found.items()
            for each in one.explained
        }
        self._rule, self._failed_in = "", 0  # the shard that shrank the failure of this rule

    def prepare(self, plan: Plan) -> None:
        """Say which problems are whose."""
        self._plan = plan

    def describe(self) -> Description:
        """Return traits, measurements and stages."""
        return self._described

    def judge(self, rule_id: str, problem: str, _seconds: float) -> Outcome:
        """Return what the shard answered that judged the problem.

        ELSEWHERE where none did. While a failing problem is shrunk, what its shard had no time for counts as right, as it
        did there.
        """
        if rule_id != self._rule:
            self._rule, self._failed_in = rule_id, 0
        key = (rule_id, problem, tuple(sorted(self.left_out)))
        whose, outcomes = self._asked(key)
        if not outcomes:
            if not self._failed_in:
                self.unanswered.append(problem)
            return Outcome(Status.JUDGED if self._failed_in else Status.ELSEWHERE)
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if outcome.fails and not outcome.lost:
            self._failed_in = whose
        return outcome

    def _asked(self, key: Key) -> tuple[int, list[Outcome]]:
        """Return the shard that judged a problem, and its answers, in the order in which they were given."""
        (rule,) = find_rules([key[0]])
        whose = self._failed_in or self._plan.owner(rule, key[1], self._of)
        numbers = [whose] if whose else [n for n in self._answers if key in self._answers[n]]
        return next(((n, self._answers[n][key]) for n in numbers if key in self._answers.get(n, {})), (0, []))

    def diagnose(self, rule_id: str, problem: str, *_: Any) -> list[dict[str, Any]]:
        """Return what explained the failure in its shard."""
        return self._explained.get((self._failed_in, rule_id, problem), [])

    def close(self) -> None:
        """There is nothing to end."""


def _answers_of(found: ShardCandidate) -> Answers:
    return {
        (one.rule, one.problem, tuple(sorted(one.without))): [
            build_from_json(Outcome, outcome, "outcome") for outcome in one.outcomes
        ]
        for one in found.answers
    }


def merge_shards(records: Sequence[tuple[str, RunRecord]]) -> RunRecord:
    """Return the record of the run that these records are the shards of.

    Args:
        records: with the names that messages call them by.

    Returns:
        It passes only where every problem of the plan was judged; `sharing.missing` says what was not.

    Raises:
        RecordError: one is no shard, is there twice, or is of another run: other candidates, rules, versions, seed.
    """
    refuse_unlike(records)
    shards = sorted(((shard_of(name, record), record) for name, record in records), key=lambda s: s[0].number)
    part, first = shards[0]
    record = _begun([one for _, one in shards])
    there = {one.number for one, _ in shards}
    missing = [f"shard {n} of {part.of} is missing" for n in range(1, part.of + 1) if n not in there]
    unanswered: list[str] = []
    for name in [run.name for run in first.candidates]:
        runs = {one.number: run for one, r in shards for run in r.candidates if run.name == name}
        if any(run.ran for run in runs.values()):
            missing += [f"{name} did not run in shard {n}: {r.reason}" for n, r in runs.items() if not r.ran]
        found = {one.number: each for one, _ in shards for each in one.found if each.name == name}
        run = next((r for r in runs.values() if r.ran), runs[part.number])
        record.candidates.append(run)
        if found:
            unanswered += _read_again(run, found, part, record)
    if unanswered and not missing:
        missing = [f"{len(unanswered):,} problems were judged in no shard, the first: {unanswered[0]}"]
    record.sharing_part = _sharing([one for _, one in shards], part.of, missing)
    conclude(record, trap_floor(record) if part.all_rules and not part.shape and not missing else {})
    return record


def _begun(records: Sequence[RunRecord]) -> RunRecord:
    """Return the record of the whole run before its rules are read: what the shards say themselves."""
    first = records[0]
    whole = RunRecord(
        f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        min(record.created for record in records),
        _without_shard(first.command),
        harness_version=first.harness_version,
        profile=first.profile,
        seed=first.seed,
        seconds=max(record.seconds for record in records),
        interrupted=any(record.interrupted for record in records),
        environment=first.environment,
        errors=[error for record in records for error in record.errors],
    )
    for record in records:
        if record.canary:
            whole.canary = record.canary
        of_rules = {f"{rule.id} on {c.name}" for rule in RULES for c in record.candidates}
        whole.skips += [s for s in record.skips if s.what not in of_rules and s not in whole.skips]
    return whole


def _without_shard(command: Sequence[str]) -> list[str]:
    """Return the command that makes the whole run at once."""
    words = iter(command)
    return [w for w in words if not w.startswith("--shard=") and not (w == "--shard" and next(words, True))]


def _read_again(
    run: CandidateRun, found: Mapping[int, ShardCandidate], part: ShardPart, record: RunRecord
) -> list[str]:
    """Add to a record what the rules find on a candidate; return the problems that no shard judged."""
    session = MergedSession(found, part.of)
    profile = replace(find_profile(record.profile), problem_seconds=part.problem_seconds)
    shape = build_from_json(ModelShape, part.shape, "shape") if part.shape else None
    settings = RunSettings(profile, record.seed, shape=shape, candidate=run.name)
    session.prepare(Plan(session.describe(), settings))
    known = [settled(entry) for entry in next(iter(found.values())).known]
    for findings in judge_rules(session, find_rules(part.rules), settings, known=known):
        findings.keep(record)
    run.missing_stages = [s for s in ALL_STAGES if s in run.missing_stages or s in session.left_out]
    return session.unanswered


def _sharing(records: Sequence[RunRecord], shards: int, missing: list[str]) -> Sharing:
    """Return who judged, over all shards."""
    parts = [record.sharing_part or Sharing() for record in records]
    return Sharing(
        workers=sum(part.workers for part in parts),
        gpus=[gpu for part in parts for gpu in part.gpus],
        nodes=sum(part.nodes for part in parts),
        tasks=sum(part.tasks for part in parts),
        rerun=sum(part.rerun for part in parts),
        shards=shards,
        missing=[
            *missing,
            *(words for part in parts for words in part.missing[:-1]),  # the last one: that it is a shard
        ],
    )

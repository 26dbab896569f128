"""A run shared among workers or shards leaves the record of one run, whatever the candidate does. No torch.

The candidate answers as a function of the problem; every kind of answer that changes what a rule judges next is among them.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from harness.candidates.errors import CandidateStartError
from harness.problems.problem import Problem
from harness.problems.profiles import PROFILES
from harness.problems.reach import far_for
from harness.problems.values import seldom_for
from harness.records.parts.canary import CanaryPart, CanaryRun
from harness.records.record import RunRecord, Skip
from harness.running import check
from harness.running.known_failures import KnownFailure
from harness.running.outcome import Description, Outcome, Status
from harness.running.shared.asked import AskedSharing
from harness.running.shared.crew import Crew
from harness.running.shared.merging import merge_shards
from harness.running.shared.plan import Shard
from harness.running.shared.session import SharedSession
from harness.running.shared.tasks import Task, judge_task
from harness.verdict import Verdict
from tests.running.conftest import ToldSession
from tests.running.conftest import judged as answer
from tests.running.shared_runs import SMALL, judged, reread, what_was_found

RULES = ["DECLARED", "GEMM", "PAD-ROWS"]
Answer = Callable[[Problem], Outcome]


def each(problem: Problem, of: int) -> bool:
    """One of so many problems, by its name."""
    return zlib.crc32(str(problem).encode()) % of == 0


def fails_now_and_then(status: Status, of: int) -> Answer:
    return lambda p: Outcome(status, "as told", stage="masked_grouped_gemm") if each(p, of) else answer()


ANSWERS: dict[str, Answer] = {
    "right": lambda _: answer(),
    "right, some of it powerless": lambda p: answer(compared=p.tokens, power=not each(p, 9)),
    "wrong always": lambda _: answer(illegal=1),
    "wrong in large problems": lambda p: answer(illegal=int(p.tokens > 20)),
    "wrong for a value": lambda p: answer(illegal=int("alpha_zero" in p.extras)),
    "wrong far away": lambda p: answer(illegal=int(p.capacity >= 8000)),
    "wrong here and there": lambda p: answer(illegal=int(each(p, 12))),
    "crashes": fails_now_and_then(Status.CRASHED, 8),
    "crashes twice": fails_now_and_then(Status.CRASHED, 40),
    "crashes and is wrong": lambda p: (
        Outcome(Status.CRASHED, "x") if each(p, 17) else answer(illegal=int(each(p, 13)))
    ),
    "hangs": fails_now_and_then(Status.TIMEOUT, 9),
    "loses a rank": fails_now_and_then(Status.RANK_LOST, 21),
    "is slow": fails_now_and_then(Status.SLOW, 11),
    "lacks memory once": fails_now_and_then(Status.NO_MEMORY, 31),
    "raises": fails_now_and_then(Status.RAISED, 7),
    "breaks the contract": fails_now_and_then(Status.CONTRACT, 7),
    "is a stub": lambda _: Outcome(Status.NOT_IMPLEMENTED, stage="masked_grouped_gemm"),
    "says nothing": lambda _: Outcome(Status.NOT_APPLICABLE, "no hints"),
    "blind": lambda p: answer(power=each(p, 3)),
    "empty": lambda _: answer(compared=0),
}


class ToldWorker:
    """A worker whose candidate is told what to answer."""

    def __init__(self, told: Answer) -> None:
        self.session = ToldSession(told)

    def start(self) -> Description:
        return self.session.describe()

    def run(self, task: Task) -> list[Outcome]:
        return judge_task(self.session, task)

    def diagnose(self, *asked: Any) -> list[dict[str, Any]]:
        return self.session.diagnose(*asked)

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunRecord]:
    def run(told: Answer, sharing: AskedSharing | None = None, **words: Any) -> RunRecord:
        def shared(_: str, asked: AskedSharing, **__: Any) -> SharedSession:
            return SharedSession(Crew([ToldWorker(told) for _ in range(asked.workers)]))

        monkeypatch.setitem(PROFILES, "quick", SMALL)
        # Of those that are judged for their values and extents a few of each are enough here.
        monkeypatch.setattr("harness.running.runner.seldom_for", lambda *a: seldom_for(*a)[:4])
        monkeypatch.setattr("harness.running.runner.far_for", lambda *a, **w: far_for(*a, **w)[:3])
        monkeypatch.setattr(check, "open_session", lambda *_, **__: ToldSession(told))
        monkeypatch.setattr(check, "open_shared", shared)
        return judged(["mine"], RULES, sharing, **words)

    return run


def merged(run: Callable[..., RunRecord], told: Answer, of: int, folder: Path, **words: Any) -> RunRecord:
    """The record of so many shards, the last one first."""
    shards = [reread(run(told, AskedSharing(shard=Shard(n, of)), **words), folder) for n in range(of, 0, -1)]
    return merge_shards([(f"{n}.json", record) for n, record in enumerate(shards)])


QUICK = {"right, some of it powerless", "crashes and is wrong"}
CASES = [
    pytest.param(told, id=name, marks=[] if name in QUICK else pytest.mark.long)
    for name, told in ANSWERS.items()
]


@pytest.mark.parametrize("told", CASES)
def test_workers_and_shards_leave_the_record_of_one_run(told: Answer, run, tmp_path: Path) -> None:
    alone = run(told)
    assert what_was_found(run(told, AskedSharing(workers=3))) == what_was_found(alone)
    whole = merged(run, told, 3, tmp_path)
    assert what_was_found(whole) == what_was_found(alone)
    assert whole.sharing_part.shards == 3
    assert whole.shard is None


@pytest.mark.long
def test_the_answers_make_every_verdict(run) -> None:
    found = {run(ANSWERS[name]).verdict for name in ("right", "blind", "raises")}
    assert found == {*Verdict}


@pytest.mark.long
@pytest.mark.parametrize("of", [1, 2, 7])
def test_any_number_of_shards_makes_the_same_record(of: int, run, tmp_path: Path) -> None:
    told = ANSWERS["wrong here and there"]
    assert what_was_found(merged(run, told, of, tmp_path)) == what_was_found(run(told))


def test_no_problem_is_judged_by_two_shards(run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Problem] = []

    def told(problem: Problem) -> Outcome:
        asked.append(problem)
        return answer()

    run(told)
    alone, counts = sorted(map(str, asked)), []
    asked.clear()
    for number in (1, 2, 3):
        run(told, AskedSharing(shard=Shard(number, 3)))
        counts.append(len(asked))
    assert sorted(map(str, asked)) == alone
    assert max(counts) - len(asked) // 3 < 5 or counts[0] < len(asked) / 2


@pytest.mark.long
def test_a_known_failure_is_known_in_the_merged_record_too(run, tmp_path: Path) -> None:
    known = [KnownFailure("GEMM", "mine", "", "", "mine#1", "2026-01-01", "not yet")]
    told = ANSWERS["wrong in large problems"]
    alone = run(told, known=known)
    assert [rule.verdict for rule in alone.rules if rule.rule == "GEMM"] == [Verdict.PASS]
    assert what_was_found(merged(run, told, 2, tmp_path, known=known)) == what_was_found(alone)


def test_one_shard_never_passes_and_says_which_it_is(run) -> None:
    record = run(ANSWERS["right"], AskedSharing(shard=Shard(2, 3)))
    assert record.verdict is Verdict.UNKNOWN
    assert record.reason.startswith("shard 2 of 3, ")
    assert "harness report --merge" in record.reason
    assert {rule.verdict for rule in record.rules} <= {Verdict.PASS, Verdict.UNKNOWN}


def test_a_missing_shard_is_named_and_a_failure_of_the_others_stays_one(run, tmp_path: Path) -> None:
    def two_of_three(told: Answer) -> RunRecord:
        shards = [reread(run(told, AskedSharing(shard=Shard(n, 3))), tmp_path) for n in (1, 3)]
        return merge_shards([("a", shards[0]), ("b", shards[1])])

    record = two_of_three(ANSWERS["right"])
    assert (record.verdict, record.reason) == (Verdict.UNKNOWN, "shard 2 of 3 is missing")
    assert "in other parts of the run" in record.rules[0].reason
    assert two_of_three(fails_now_and_then(Status.CRASHED, 2)).verdict is Verdict.FAIL


@pytest.mark.long
def test_a_problem_that_no_shard_judged_makes_the_run_unknown(run, tmp_path: Path) -> None:
    """As after a shard that was given too little memory: each shard draws another one in its place, and sees only its own."""
    record = merged(run, fails_now_and_then(Status.NO_MEMORY, 2), 3, tmp_path)
    assert record.verdict is Verdict.UNKNOWN
    assert "problems were judged in no shard, the first: " in record.reason


def test_an_interrupted_shard_makes_the_run_unknown(run, tmp_path: Path) -> None:
    shards = [reread(run(ANSWERS["right"], AskedSharing(shard=Shard(n, 2))), tmp_path) for n in (1, 2)]
    shards[1].interrupted = True
    record = merge_shards([("a", shards[0]), ("b", shards[1])])
    assert (record.verdict, record.reason) == (Verdict.UNKNOWN, "interrupted")


def test_the_canary_of_the_last_shard_and_what_another_lacked_are_in_the_merged_record(
    run, tmp_path: Path
) -> None:
    shards = [reread(run(ANSWERS["right"], AskedSharing(shard=Shard(n, 2))), tmp_path) for n in (1, 2)]
    assert [AskedSharing(shard=Shard(n, 2)).asks_the_canary for n in (1, 2)] == [False, True]
    shards[1].canary_part = CanaryPart(8, [CanaryRun("FAIL", "dead", "0 of 8 right", candidate="mine")])
    shards[0].skips.append(Skip("something", "is missing"))
    record = merge_shards([("a", shards[0]), ("b", shards[1])])
    assert (record.verdict, record.canary) == (Verdict.FAIL, shards[1].canary)
    assert Skip("something", "is missing") in record.skips


def test_a_worker_that_is_lost_for_good_makes_the_run_unknown(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str, asked: AskedSharing, **__: Any) -> SharedSession:
        session = SharedSession(Crew([ToldWorker(ANSWERS["right"])]))
        session._crew.wait = Mock(side_effect=CandidateStartError("it has other traits now"))
        return session

    run(ANSWERS["right"])
    monkeypatch.setattr(check, "open_shared", gone)
    record = judged(["mine"], RULES, AskedSharing(workers=2))
    assert record.verdict is Verdict.UNKNOWN
    assert record.reason == "mine was not judged to the end: it has other traits now"


def test_the_time_of_a_rule_is_that_of_its_judging(run) -> None:
    record = run(lambda _: dataclasses.replace(answer(), seconds=0.25))
    assert [rule.seconds for rule in record.rules] == [0.25 * rule.examples for rule in record.rules]

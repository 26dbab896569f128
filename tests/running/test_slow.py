"""What a rule makes of slow answers, of none, of a GPU that is too small, and of a real model's large problems. No torch."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from harness.candidates.protocol import Traits
from harness.problems.problem import WEIGHT_SEEDS
from harness.problems.profiles import PROFILES
from harness.problems.shapes import ModelShape
from harness.rules import find_rules
from harness.running import runner
from harness.running.outcome import Outcome, Status
from harness.running.runner import RuleRun
from harness.running.settings import RunSettings
from harness.verdict import Verdict

QUANT, GEMM = (find_rules([name])[0] for name in ("QUANT", "GEMM"))
SMALL = dataclasses.replace(PROFILES["quick"], experts=4, capacity=40)


def settings(**words: Any) -> RunSettings:
    return RunSettings(**{"profile": SMALL, "candidate": "some:Candidate"} | words)


def test_a_problem_without_an_answer_from_a_slow_candidate_is_unknown_and_ends_the_rule(told, answer) -> None:
    def slow(problem: Any) -> Outcome:
        return answer() if len(session.problems) < 4 else Outcome(Status.SLOW, "no answer within 1800 s")

    session = told(slow)
    result = RuleRun(QUANT, session, settings()).draw()
    assert (result.verdict, result.examples, len(session.problems)) == (Verdict.UNKNOWN, 3, 4)
    assert result.failures == []
    assert result.reason.startswith("slow: no answer within 1800 s, on ")
    assert re.search(r"3 of \d+ problems were judged \(--problem-seconds allows more\)$", result.reason)
    alone = RuleRun(QUANT, session, settings()).repeat(session.problems[-1])
    assert (alone.verdict, alone.examples) == (Verdict.UNKNOWN, 0)


def test_a_rule_that_has_failed_stays_a_failure_when_the_candidate_gets_slow(told, answer) -> None:
    session = told(
        lambda _: answer(illegal=1) if len(session.problems) < 3 else Outcome(Status.SLOW, "no answer")
    )
    assert RuleRun(QUANT, session, settings()).draw().verdict is Verdict.FAIL


def test_three_answers_after_the_limit_end_a_rule_as_slow(
    told, answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def each(_: object) -> Outcome:
        nonlocal now
        now += 61 if len(session.problems) % 5 == 0 else 59
        return answer()

    monkeypatch.setattr("time.monotonic", lambda: now)
    session = told(each)
    result = RuleRun(QUANT, session, settings()).draw()
    assert (result.verdict, result.examples) == (Verdict.UNKNOWN, 15)
    assert "3 problems took longer than 60 s each, the last of them" in result.reason


@pytest.mark.parametrize("status", [Status.RAISED, Status.INTERNAL])
def test_a_problem_for_which_a_gpu_lacks_memory_is_not_tested_and_no_failure(told, answer, status) -> None:
    def each(problem: Any) -> Outcome:
        large = problem.capacity >= 16384
        return Outcome(status, "OutOfMemoryError: CUDA out of memory") if large else answer()

    session = told(each, Traits())
    session.device_bytes = 1 << 40
    result = RuleRun(GEMM, session, settings()).draw()
    assert session.problems[-1].capacity == 16384
    assert (result.verdict, result.examples) == (Verdict.PASS, len(session.problems) - 1)
    assert result.extents["capacity"] == 8192


def test_a_real_models_problems_begin_small_and_share_their_weights(told, answer) -> None:
    session = told(lambda _: answer())
    shape = ModelShape("m", hidden=64, inter=32, experts=8, topk=2, ep=2)
    RuleRun(QUANT, session, settings(profile=PROFILES["quick"], shape=shape)).draw()
    capacities = [problem.capacity for problem in session.problems]
    assert max(capacities[:10]) <= runner.FIRST_CAPACITY < max(capacities)
    assert {problem.seed % WEIGHT_SEEDS for problem in session.problems} == {0}
    assert len({problem.seed for problem in session.problems}) > 10

"""A failure gets its diagnosis, a passing run pays nothing for it."""

from __future__ import annotations

import dataclasses

from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.rules import find_rules
from harness.running.failure import DIAGNOSED_SIZE
from harness.running.runner import RuleRun, RunSettings

(GEMM,) = find_rules(["GEMM"])
SETTINGS = RunSettings(
    dataclasses.replace(PROFILES["quick"], experts=4, capacity=40), candidate="some:Candidate"
)
FOUND = {
    "fault": "alpha_dropped",
    "title": "The product is stored without alpha",
    "evidence": "reproduces 100 % of 12 illegal elements",
    "place": "expert 1, row 0",
    "bugs": ["vllm#1"],
}


def test_a_passing_rule_is_not_diagnosed(told, answer) -> None:
    session = told(lambda _: answer())
    RuleRun(GEMM, session, SETTINGS).draw()
    assert session.diagnosed == []


def test_a_failure_is_diagnosed_once_on_the_failing_problem_that_tells_most(told, answer) -> None:
    session = told(lambda p: answer(illegal=int(p.tokens >= 3)))
    session.diagnosis = [FOUND]
    result = RuleRun(GEMM, session, SETTINGS).draw()
    (failure,), ((rule, problem, command),) = result.failures, session.diagnosed

    def size(p):
        return p.experts * p.capacity * p.hidden

    assert rule == "GEMM"
    assert size(parse_problem(problem)) == max(
        size(p) for p in session.problems if p.tokens >= 3 and size(p) <= DIAGNOSED_SIZE
    )
    assert size(parse_problem(failure.problem)) < size(parse_problem(problem)), "the failure itself is shrunk"
    assert command.startswith("harness diagnose --candidate some:Candidate --rule GEMM --problem ")
    assert failure.diagnosis == [FOUND]
    assert failure.message.splitlines()[-1] == (
        "  diagnosis  The product is stored without alpha: reproduces 100 % of 12 illegal elements, expert 1, row 0; "
        "like vllm#1"
    )


def test_a_given_problem_is_diagnosed_itself(told, answer) -> None:
    session = told(lambda _: answer(illegal=1))
    problem = "1x4x16x16:3:normal:1"
    RuleRun(GEMM, session, SETTINGS).repeat(parse_problem(problem))
    assert [d[1] for d in session.diagnosed] == [problem]

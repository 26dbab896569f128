"""A failure gets the diagnosis of what it shows; a larger problem adds to it where it agrees; a passing run pays nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.rules import find_rules
from harness.running.failure import DIAGNOSED_SIZE
from harness.running.outcome import Outcome, Status
from harness.running.runner import RuleRun
from harness.running.settings import RunSettings

(GEMM,) = find_rules(["GEMM"])
SETTINGS = RunSettings(
    dataclasses.replace(PROFILES["quick"], experts=4, capacity=40), candidate="some:Candidate"
)
FOUND = {
    "fault": "alpha_dropped",
    "title": "The product is stored without alpha",
    "evidence": "reproduces 100 % of 12 illegal elements",
    "explained": 1.0,
    "elements": 12,
    "place": "expert 1, row 0",
    "bugs": ["vllm#1"],
}


def test_a_passing_rule_is_not_diagnosed(told, answer) -> None:
    session = told(lambda _: answer())
    RuleRun(GEMM, session, SETTINGS).draw()
    assert session.diagnosed == []


def test_the_shown_failure_is_diagnosed_and_one_on_the_problem_that_tells_most(told, answer) -> None:
    session = told(lambda p: answer(illegal=int(p.tokens >= 3)))
    session.diagnosis = [FOUND]
    result = RuleRun(GEMM, session, SETTINGS).draw()
    (failure,), (larger, shown) = result.failures, session.diagnosed

    def size(p):
        return p.experts * p.capacity * p.hidden

    assert larger[0] == shown[0] == "GEMM"
    assert size(parse_problem(larger[1])) == max(
        size(p) for p in session.problems if p.tokens >= 3 and size(p) <= DIAGNOSED_SIZE
    )
    assert shown[1] == failure.problem
    assert size(parse_problem(failure.problem)) < size(parse_problem(larger[1])), (
        "the failure itself is shrunk"
    )
    assert larger[2].startswith("harness diagnose --candidate some:Candidate --rule GEMM --problem ")
    assert failure.message.splitlines()[-1] == (
        "  diagnosis  The product is stored without alpha: reproduces 100 % of 12 illegal elements; "
        f"on {larger[1]} 100 % of 12 illegal elements, expert 1, row 0; like vllm#1"
    )


def test_a_given_problem_is_diagnosed_itself(told, answer) -> None:
    session = told(lambda _: answer(illegal=1))
    problem = "1x4x16x16:3:normal:1"
    RuleRun(GEMM, session, SETTINGS).repeat(parse_problem(problem))
    assert [d[1] for d in session.diagnosed] == [problem]


def drawn(told, answer, shown: dict[str, Any], larger: dict[str, Any]):
    """Draw on a candidate of whose failures the smallest one, and all others, have these diagnoses."""

    class Told(told):
        def diagnose(self, rule: str, problem: str, command: str, seconds: float, likely: Sequence[str] = ()):
            super().diagnose(rule, problem, command, seconds, likely)
            return [shown if len(self.diagnosed) == 2 else larger]

    session = Told(lambda p: answer(illegal=int(p.tokens >= 3)))
    return session, RuleRun(GEMM, session, SETTINGS).draw().failures


OTHER = {**FOUND, "fault": "alpha_twice", "title": "The product is multiplied by alpha twice"}
NOTHING = {
    "fault": "",
    "title": "no known fault explains it",
    "explained": 0.0,
    "elements": 9,
    "pattern": ["rows 0 to 8"],
}
WEAK = {**FOUND, "weak": "only 1 change of value", "pattern": ["1 element is illegal"]}


def test_another_cause_of_the_larger_problem_is_another_failure(told, answer) -> None:
    session, (shown, other) = drawn(told, answer, FOUND, OTHER)
    assert shown.diagnosis == [FOUND]
    assert other.diagnosis == [OTHER]
    assert [shown.problem, other.problem] == [d[1] for d in reversed(session.diagnosed)]
    assert OTHER["title"] not in shown.message


def test_what_explains_both_is_named_though_the_shown_problem_tells_less(told, answer) -> None:
    shown = {**WEAK, "also": ["alpha_twice"]}
    _, (failure,) = drawn(told, answer, shown, OTHER)
    assert failure.diagnosis[0]["fault"] == "alpha_twice"
    assert "weak" not in failure.diagnosis[0]


def test_what_does_not_explain_the_larger_problem_is_not_named(told, answer) -> None:
    _, (failure,) = drawn(told, answer, WEAK, NOTHING)
    assert [f["fault"] for f in failure.diagnosis] == ["", ""]
    first, second = failure.message.splitlines()[-2:]
    assert first == "  diagnosis  no known fault explains it: 1 element is illegal"
    assert second.startswith("  diagnosis  of ")
    assert second.endswith("no known fault explains it: rows 0 to 8")


def test_a_fault_that_the_larger_problem_contradicts_reads_as_weak_in_its_first_words(told, answer) -> None:
    _, (failure,) = drawn(told, answer, FOUND, NOTHING)
    assert failure.diagnosis[0]["weak"].endswith("fails as well, and this does not explain it")
    assert failure.message.splitlines()[-1].startswith(
        "  diagnosis  perhaps: The product is stored without alpha"
    )
    for unsure in ({"measured": True}, {"also": ["alpha_twice"]}):
        _, (failure,) = drawn(told, answer, {**FOUND, **unsure, "pattern": ["12 times"]}, NOTHING)
        assert failure.diagnosis[0]["fault"] == ""


@pytest.mark.parametrize("status", [Status.RAISED, Status.CONTRACT])
def test_an_exception_has_no_diagnosis_but_the_problems_that_it_comes_with(told, answer, status) -> None:
    session = told(lambda p: Outcome(status, "it broke") if 1 in p.masked_m else answer())
    (failure,) = RuleRun(GEMM, session, SETTINGS).draw().failures
    assert session.diagnosed == []
    assert failure.message.startswith(f"{status}: it broke")
    assert "  diagnosis  it fails like this whenever an expert has one row: " in failure.message
    assert [f["fault"] for f in failure.diagnosis] == [""]

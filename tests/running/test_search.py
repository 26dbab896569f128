"""A search shrinks what fails, and nothing else: what our own code raises ends it at once."""

from __future__ import annotations

import pytest

from harness.candidates.protocol import Traits
from harness.problems.problem import Problem
from harness.problems.profiles import PROFILES
from harness.problems.strategies import problems
from harness.rules import find_rules
from harness.running.outcome import Outcome, Status
from harness.running.runner import InternalError, RuleRun
from harness.running.search import IllegalError, search
from harness.running.settings import RunSettings

QUICK = PROFILES["quick"]
TRAITS = Traits(device="cpu", k_multiple=16, n_multiple=1)


class EndedError(BaseException):
    """As pytest ends a test from outside."""


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, EndedError, AssertionError])
def test_what_is_no_failing_problem_is_not_shrunk(error: type[BaseException]) -> None:
    taken: list[Problem] = []

    def take(problem: Problem) -> None:
        taken.append(problem)
        raise error("our own")

    with pytest.raises(error, match="our own"):
        search(take, problems(find_rules(["GEMM"])[0].drawn, TRAITS, QUICK), 1)
    assert len(taken) == 1


@pytest.mark.parametrize(("failing", "after"), [(99, 0), (99, 7), (4, 7)])
def test_a_defect_of_the_harness_is_met_once(failing: int, after: int, told, answer) -> None:
    """At first, later, and while a problem that fails is shrunk."""

    def outcome(_: Problem) -> Outcome:
        if len(session.problems) > after:
            return Outcome(Status.INTERNAL, "Traceback: division by zero")
        return answer(illegal=int(len(session.problems) > failing))

    session = told(outcome)
    with pytest.raises(InternalError, match="division by zero"):
        RuleRun(find_rules(["GEMM"])[0], session, RunSettings(QUICK, candidate="x")).draw()
    assert len(session.problems) == after + 1


def test_a_problem_that_fails_now_and_then_is_a_failure_and_no_defect() -> None:
    """Hypothesis calls such a function flaky, and raises an error of its own."""
    seen: set[str] = set()

    def take(problem: Problem) -> None:
        if str(problem) in seen:
            return
        seen.add(str(problem))
        if len(seen) > 3:
            raise IllegalError

    with pytest.raises(IllegalError):
        search(take, problems(find_rules(["GEMM"])[0].drawn, TRAITS, QUICK), 1)

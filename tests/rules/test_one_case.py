"""A fault that shows in one kind of call only is caught in `quick` by the rule that it belongs to; what differs legally is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from harness.candidates.eager import Eager
from harness.problems.profiles import PROFILES
from harness.problems.reach import FAR
from harness.records.record import RuleResult
from harness.rules import find_rules
from harness.running.judge import Judge
from harness.running.outcome import Outcome, Status
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict
from tests.rules import one_case
from tests.rules.right_kernels import RIGHT

RULES = ("WRITES", "PAD-OUT", "INPUTS", "LAYOUT-OUT", "LAYOUT-IN", "REPEAT", "GEMM", "PIPELINE")
# Of each output type that a rule picks by the seed, and both inputs of a layer.
SMALL = tuple(f"3x6x64x32:4,0,5:normal:{seed}" for seed in (0, 7, 14))
(NEIGHBOURS,) = (str(far.problem(far.most, Eager().traits, 0)) for far in FAR if far.name == "neighbours")


@pytest.fixture(autouse=True)
def _without_shrinking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A smaller problem and a diagnosis are the subject of other tests."""
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 0.0)
    monkeypatch.setattr("harness.running.runner.diagnose_failure", lambda *_: None)
    return


def judged(candidate: Any, rule: str) -> RuleResult:
    session = InProcess(candidate, threads=1)
    return RuleRun(find_rules([rule])[0], session, RunSettings(PROFILES["quick"], candidate="mine")).draw()


def outcome(candidate: Any, rule: str, problem: str) -> Outcome:
    return Judge(candidate, threads=1, probe=False).judge(rule, problem)


@pytest.mark.parametrize("name", one_case.FAULTS)
def test_it_is_illegal_on_a_small_problem(name: str) -> None:
    rule, kind = one_case.FAULTS[name]
    problems = (NEIGHBOURS,) if rule in {"GEMM", "QUANT"} else SMALL
    assert any(outcome(kind(), rule, problem).illegal for problem in problems)


@pytest.mark.long
@pytest.mark.parametrize("name", one_case.FAULTS)
def test_it_is_caught_in_quick_by_the_rule_that_it_belongs_to(name: str) -> None:
    rule, kind = one_case.FAULTS[name]
    result = judged(kind(), rule)
    assert result.verdict is Verdict.FAIL
    assert {failure.kind for failure in result.failures} == {"illegal"}


def test_there_are_enough_of_them_and_each_rule_has_several() -> None:
    rules = [rule for rule, _ in one_case.FAULTS.values()]
    assert len(rules) >= 25
    assert min(map(rules.count, set(rules))) >= 3


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("rule", ["WRITES", "LAYOUT-OUT", "LAYOUT-IN", "REPEAT"])
def test_what_differs_legally_is_not_illegal_on_a_small_problem(rule: str, name: str) -> None:
    found = outcome(RIGHT[name](), rule, SMALL[len(name) % len(SMALL)])
    assert (found.status, found.illegal) == (Status.JUDGED, [])
    assert any(c.compared for c in found.comparisons)


@pytest.mark.long
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("rule", RULES)
def test_what_differs_legally_is_never_flagged_in_quick(rule: str, name: str) -> None:
    result = judged(RIGHT[name](), rule)
    assert (result.verdict, result.failures) == (Verdict.PASS, []), result.reason


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("ScalesTokensInPlace", ("QUANT", "PIPELINE", "PAD-ROWS", "TOKENS", "REPEAT")),
        ("HalvesScalesOfA-float32", ("GEMM", "WRITES", "PAD-OUT", "LAYOUT-OUT", "REPEAT")),
        ("CountsDownMaskedM-float32", ("GEMM", "WRITES", "PAD-OUT", "TOKENS")),
        ("ClearsQuantizedTokens", ("MOE", "EXPERTS", "REPEAT")),
    ],
)
def test_a_changed_input_is_the_matter_of_one_rule_and_the_others_judge_what_came_out(
    name: str, rules: tuple[str, ...]
) -> None:
    _, kind = one_case.FAULTS[name]
    for rule in rules:
        for problem in SMALL:
            assert outcome(kind(), rule, problem).illegal == [], rule
    assert any(outcome(kind(), "INPUTS", problem).illegal for problem in SMALL)

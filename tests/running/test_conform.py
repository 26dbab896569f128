"""`conformance`, as another project's own test calls it."""

from __future__ import annotations

import pytest

from harness import conformance
from harness.candidates.eager import Eager
from harness.candidates.support import unsupported
from harness.running.conform import UnknownVerdictError
from harness.verdict import UsageError, Verdict

RULES = ["QUANT", "MOE"]


def test_a_right_candidate_passes_and_its_results_come_back() -> None:
    results = conformance(Eager(), rules=RULES, max_seconds=30)  # takes 4: the machine's load must not decide
    assert [r.rule for r in results] == RULES
    assert {r.verdict for r in results} == {Verdict.PASS}
    assert all(r.compared and r.candidate == "eager" for r in results)


def test_a_faulty_candidate_raises_with_the_element_the_problem_and_the_rule(faulty, monkeypatch) -> None:
    monkeypatch.setattr(
        "harness.running.runner.SHRINK_SECONDS", 6.0
    )  # enough where others use the machine too
    with pytest.raises(AssertionError) as caught:
        conformance(faulty.Doubled(), rules=["QUANT", "GEMM"], max_seconds=5)
    message = str(caught.value)
    assert message.startswith("gemm[expert 0, row 0, col ")
    assert " times it; the only legal value is " in message
    assert "rule       GEMM: every output is the exact result" in message
    assert "problem    v2:1x1x16x16:1:" in message, "the problem shrank to the smallest there is"
    assert "--candidate faulty:Doubled " in message, (
        "the command finds it, and not the class that it inherits from"
    )
    assert not isinstance(caught.value, UnknownVerdictError)


def test_rules_whose_stages_are_missing_are_left_out(faulty) -> None:
    results = conformance(faulty.QuantizesOnly(), rules=["QUANT", "GEMM", "MOE"], max_seconds=30)
    assert [r.rule for r in results] == ["QUANT"]


class CannotRun(Eager):
    def support(self):
        return unsupported("needs sm_100")


@pytest.mark.parametrize(
    ("candidate", "rules", "words"),
    [
        (CannotRun(), [], "cannot run here: needs sm_100"),
        (object(), [], "none of the stages"),
        (Eager(), ["GRAPH", "HINTS"], "no rule applies"),
    ],
)
def test_a_candidate_of_which_nothing_can_be_judged_does_not_pass(candidate, rules, words) -> None:
    with pytest.raises(UnknownVerdictError, match=words) as caught:
        conformance(candidate, rules=rules)
    assert isinstance(caught.value, AssertionError), "in a test it is a failure like any other"


def test_a_rule_without_power_or_time_does_not_pass() -> None:
    with pytest.raises(UnknownVerdictError, match="QUANT: no problem was judged: the time was over"):
        conformance(Eager(), rules=["QUANT"], max_seconds=1e-9)


@pytest.mark.parametrize("words", [{"rules": ["GEM"]}, {"profile": "quik", "rules": ["QUANT"]}])
def test_unknown_rules_and_profiles_are_refused(words) -> None:
    with pytest.raises(UsageError, match="did you mean"):
        conformance(Eager(), **words)


def test_a_candidate_that_raises_in_every_gemm_fails_with_its_own_error(faulty, monkeypatch) -> None:
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 0.0)
    with pytest.raises(AssertionError, match=r"raised: KeyError: 'tile shape \(128, 4\)'"):
        conformance(faulty.Raises(), rules=["GEMM"])

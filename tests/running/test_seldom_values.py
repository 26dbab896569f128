"""A kernel that is wrong for one seldom value is caught by a problem that names it; one that is right there never is."""

from __future__ import annotations

import dataclasses
import zlib

import pytest

from harness.candidates.protocol import Traits
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.problems.traps import TRAPS
from harness.problems.values import SELDOM, seldom_for, seldom_problem
from harness.rules import RULES, find_rules
from harness.running.judge import Watched, judge_context
from harness.running.misfit import misfit
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict
from tests.running.right_variants import VARIANTS
from tests.running.seldom_faults import FAULTS, Seldom, candidate

VALUE_RULES = ("QUANT", "ACT", "GEMM", "PIPELINE", "MOE", "ROUTE", "COMBINE")
QUICK = PROFILES["quick"]
FEW = dataclasses.replace(QUICK, examples=4, least=4)
# Existing traps that show the same mistake: the shrunk problem may name them as well.
ALSO = {
    "subnormal",
    "scale_underflow",
    "subnormal_scales",
    "nan",
    "inf",
    "scale_saturation",
    "some_nan",
    "infinities",
}
FAST_VARIANTS = {"FusedSwiglu": "MOE", "RefusesSpecials": "GEMM", "Flushes": "QUANT", "SiluVanishes": "ACT"}


def caught_by(name: str, rule_id: str) -> set[str]:
    """Return the traps and options of the problems, of those that a run judges for their values, on which a fault fails."""
    subject, (rule,) = candidate(FAULTS[name]), find_rules([rule_id])
    known = Known.declared(subject.traits)
    found: set[str] = set()
    for extras in seldom_for(rule.drawn, subject.traits):
        if extras & set(FAULTS[name].traps):
            problem = seldom_problem(extras, subject.traits, zlib.crc32(name.encode()) % 1000)
            found |= extras if judge_context(rule, Context(Watched(subject), problem, known)).fails else set()
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_caught_by_the_problem_of_its_value(name: str) -> None:
    """Every run judges these problems: `test_every_run_judges_...`."""
    assert caught_by(name, FAULTS[name].rule) & set(FAULTS[name].traps)


def test_there_are_faults_of_every_seldom_value() -> None:
    assert {trap for fault in FAULTS.values() for trap in fault.traps} >= set(SELDOM)
    assert len(FAULTS) >= 50


@pytest.mark.parametrize("rule_id", VALUE_RULES)
@pytest.mark.parametrize("profile", ["quick", "standard"])
def test_every_run_judges_each_value_as_often_as_a_trap_must_be_drawn(
    rule_id: str, profile: str, told, answer
) -> None:
    (rule,), session = find_rules([rule_id]), told(lambda _: answer())
    few = dataclasses.replace(PROFILES[profile], examples=10, least=10)
    result = RuleRun(rule, session, RunSettings(few, candidate="x")).draw()
    assert result.verdict is Verdict.PASS
    judged = [problem.extras for problem in session.problems]
    for extras in seldom_for(rule.drawn, session.traits):
        assert judged.count(extras) >= max(PROFILES[profile].trap_floor, 1), extras


def test_only_rules_that_know_the_values_and_take_them_judge_them() -> None:
    traits = Traits(device="cpu", k_multiple=16, n_multiple=1)
    values = {
        rule.id: {name for e in seldom_for(rule.drawn, traits) for name in e & set(SELDOM)} for rule in RULES
    }
    assert set().union(*(values[rule] for rule in VALUE_RULES)) == set(SELDOM)
    assert values["GEMM"] - values["QUANT"] == {
        "alpha_negative", "alpha_zero", "alpha_subnormal", "alpha_overflow", "zero_scales", "alpha_one",
        "alpha_specials", "nan_scales",
    }  # fmt: skip
    assert values["ROUTE"] == {"logits_large", "logits_low", "logits_equal", "logits_spread"}
    assert values["COMBINE"] == {"topk_zero", "topk_tiny", "topk_ties", "output_specials"}
    assert values["REPEAT"] == {"large", "small"}, "bits are compared there: no NaN"


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({"finite_only": True}, "alpha_overflow: alphas that take"),
        ({"keeps_subnormals": False}, "alpha_subnormal: alphas that are float32 subnormals"),
        ({"alpha_required": True}, "no_alpha: the candidate declares alpha_required"),
        ({"max_experts": 2}, "4 experts are more than 2"),
    ],
)
def test_what_a_contract_leaves_out_is_not_drawn_and_a_given_problem_of_it_is_a_misfit(
    declared, reason
) -> None:
    traits = Traits(device="cpu", k_multiple=16, n_multiple=1)
    narrow, (rule,) = dataclasses.replace(traits, **declared), find_rules(["GEMM"])
    left = {name for name in rule.drawn.traps_for(narrow) if not TRAPS[name].in_contract(narrow)}
    assert not left
    assert "no_alpha" not in rule.drawn.options_for(narrow) or "alpha_required" not in declared
    given = seldom_problem(frozenset({reason.split(":")[0]} & {*TRAPS, "no_alpha"}), traits, 1)
    assert misfit(given, rule, traits) == ""
    assert misfit(given, rule, narrow).startswith(reason)


@pytest.mark.parametrize(("name", "rule_id"), FAST_VARIANTS.items())
def test_a_right_kernel_of_another_kind_passes(name: str, rule_id: str) -> None:
    judge_variant(name, rule_id, FEW, seed=3)


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rule_id", VALUE_RULES)
def test_a_right_kernel_of_another_kind_passes_in_quick(name: str, rule_id: str) -> None:
    judge_variant(name, rule_id, QUICK, seed=1)


def judge_variant(name: str, rule_id: str, profile, seed: int) -> None:
    (rule,) = find_rules([rule_id])
    variant = VARIANTS[name]()
    variant.traits = dataclasses.replace(variant.traits, far=profile is not FEW)
    result = RuleRun(rule, InProcess(variant), RunSettings(profile, seed, candidate=name)).draw()
    assert result.verdict is Verdict.PASS, result.reason


@pytest.mark.long
@pytest.mark.parametrize("name", ["FusedSwiglu", "FewExperts", "ThreeExperts", "AlphaAlways", "Narrow"])
def test_a_right_kernel_of_another_kind_passes_by_every_rule(name: str) -> None:
    from harness import conformance

    assert len(conformance(VARIANTS[name])) > 20


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_fails_in_quick_and_the_smallest_problem_names_its_value(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 3.0)
    fault = FAULTS[name]
    result = RuleRun(
        find_rules([fault.rule])[0], InProcess(candidate(fault)), RunSettings(QUICK, candidate="x")
    ).draw()
    assert result.verdict is Verdict.FAIL
    named = parse_problem(result.failures[0].problem).extras
    assert named & ({*fault.traps} | ALSO), result.failures[0].problem


def test_the_smallest_problem_holds_no_trap_that_it_does_not_need() -> None:
    fault = FAULTS["alpha_magnitude"]
    result = RuleRun(
        find_rules(["GEMM"])[0], InProcess(Seldom(fault)), RunSettings(FEW, candidate="x")
    ).draw()
    assert parse_problem(result.failures[0].problem).extras == {"alpha_negative"}

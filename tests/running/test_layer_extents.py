"""A stage around the layer that is wrong from one extent on is caught as far as a PASS states that extent, and placed."""

from __future__ import annotations

import zlib

import pytest

from harness.candidates.eager import Eager
from harness.judging.context import Context, Known
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.problems.reach import AROUND, far_for
from harness.rules import RULES, Rule, find_rules
from harness.running.judge import Watched, judge_context
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict
from tests.running.layer_faults import FAULTS, FarFault

QUICK = PROFILES["quick"]
TRAITS = Eager().traits
LAYER_RULES = [rule for rule in RULES if rule.extents]
STATED = {"experts": 256, "capacity": 8192, "rows": 2048, "tokens": 2560, "hidden": 7168, "inter": 7168}


def far_problems(rule: Rule, traits, extent: str = ""):
    """Return the problems of every run that reach far in an extent, in all of them for ""."""
    holder = "tokens" if extent in ("capacity", "rows") else extent
    far = far_for(rule.id, traits, all_of_them=True, around=rule.extents)
    return [
        one.problem(one.most, traits, zlib.crc32(extent.encode()) % 99) for one in far if holder in one.name
    ]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_extent_is_caught_by_the_problem_that_reaches_there(name: str) -> None:
    """Every run judges these problems: `test_every_run_judges_...`."""
    fault = FAULTS[name]
    subject, (rule,) = FarFault(fault), find_rules([fault.rule])
    (problem,) = far_problems(rule, subject.traits, fault.extent)
    outcome = judge_context(rule, Context(Watched(subject), problem, Known.declared(subject.traits)))
    assert outcome.fails


@pytest.mark.parametrize("rule", LAYER_RULES, ids=lambda rule: rule.id)
def test_every_run_judges_a_problem_of_each_extent(rule: Rule, told, answer) -> None:
    session = told(lambda _: answer())
    RuleRun(rule, session, RunSettings(QUICK, candidate="x")).draw()
    judged = {str(problem).rsplit(":", 2)[0] for problem in session.problems}
    wanted = far_problems(rule, session.traits)
    assert len(wanted) == len({*rule.extents} & {far.name for far in AROUND})
    assert {str(problem).rsplit(":", 2)[0] for problem in wanted} <= judged


@pytest.mark.parametrize("rule_id", ["ROUTE", "DISPATCH", "COMBINE"])
def test_without_a_fault_it_passes_and_states_how_far_it_reached(rule_id: str) -> None:
    (rule,) = find_rules([rule_id])
    result = RuleRun(rule, InProcess(Eager()), RunSettings(QUICK, candidate="x")).draw()
    assert result.verdict is Verdict.PASS
    assert {*result.extents} == {*rule.extents}
    assert all(result.extents[extent] >= STATED[extent] for extent in rule.extents)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("far", AROUND, ids=lambda far: far.name)
def test_whatever_the_seed_it_reaches_its_extent_and_every_expert_gets_a_row(far, seed: int) -> None:
    problem = far.problem(far.most, TRAITS, seed)
    extents = LayerProblem(problem, TRAITS).extents
    assert extents[far.name] >= STATED[far.name]
    assert extents["experts"] == problem.experts
    if far.name == "tokens":
        assert extents["capacity"] >= STATED["capacity"]
        assert extents["rows"] >= STATED["rows"]


def test_a_problem_without_the_option_stays_small() -> None:
    extents = LayerProblem(parse_problem("4x2560x7168x7168:0*4:normal:1"), TRAITS).extents
    assert (extents["hidden"], extents["inter"]) == (256, 128)
    assert extents["tokens"] <= 24


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_extent_fails_in_quick_and_is_shrunk_to_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 3.0)
    fault = FAULTS[name]
    (rule,) = find_rules([fault.rule])
    result = RuleRun(rule, InProcess(FarFault(fault)), RunSettings(QUICK, candidate="x")).draw()
    assert result.verdict is Verdict.FAIL
    smallest = LayerProblem(parse_problem(result.failures[0].problem), TRAITS).extents
    assert smallest[fault.extent] >= fault.limit

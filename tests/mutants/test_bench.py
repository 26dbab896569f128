"""Mutants judged by one rule: known faults are killed, invisible ones survive, a wrong candidate is not blamed on a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.candidates import traits_of
from harness.candidates.eager import Eager
from harness.faults.fault import find_fault, parse_planting
from harness.faults.mutant import Mutant
from harness.faults.named import load_named
from harness.mutants.bench import Bench, SharedProblem
from harness.mutants.places import place_of
from harness.mutants.problems import QUICK, drawn_problems, quick_first, work
from harness.problems.problem import parse_problem
from harness.problems.profiles import find_profile
from harness.rules import find_rules
from harness.running.misfit import misfit

CANDIDATES = Path(__file__).parent.parent / "candidates"
STAGES = ["quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm", "masked_moe"]


@pytest.fixture(scope="module")
def bench():
    return Bench("physical", "quick")


def rule(name):
    return find_rules([name])[0]


def test_known_faults_are_killed_in_every_form(bench):
    forms = ["alpha_of_neighbour", "alpha_of_neighbour@weakest", "output_scaled@3", "output_scaled@weakest"]
    batch = bench.judge("GEMM", forms)
    assert [r.planting for r in batch.results] == forms
    assert {(r.status, r.how) for r in batch.results} == {("killed", "illegal")}
    assert all(1 <= r.examples <= 5 and r.message.startswith("gemm[expert") for r in batch.results)
    assert batch.candidate_failures == []
    for result in batch.results:
        mutant = Mutant(bench.base, [parse_planting(result.planting)])
        shared = SharedProblem(bench.base, parse_problem(result.problem), bench.measured.known, rule("GEMM"))
        assert any(c.illegal for c in shared.judge(mutant).comparisons), "the problem shows it again"


def test_a_fault_that_changes_nothing_meets_every_problem_and_survives(bench, invisible):
    (result,) = bench.judge("GEMM", [invisible.name], most=4).results
    assert (result.status, result.examples, result.problem) == ("survived", 4, "")
    (result,) = bench.judge("QUANT", [invisible.name]).results
    assert (result.status, result.examples) == ("survived", len(bench.problems("QUANT")))
    assert result.seconds == 0, "QUANT never calls the GEMM: no mutant has to run"


def test_a_rule_that_does_not_apply_judges_nothing(bench):
    (result,) = bench.judge("GRAPH", ["output_scaled"]).results
    assert result.status == "not planted"
    assert "CUDA" in result.message


def test_no_problem_is_judged_after_the_deadline(bench):
    (result,) = bench.judge("GEMM", ["output_scaled"], deadline=1.0).results
    assert (result.status, result.message, result.examples) == ("not judged", "the time was over", 0)


def test_what_a_wrong_candidate_gets_wrong_is_no_kill(monkeypatch):
    monkeypatch.chdir(CANDIDATES)
    batch = Bench("faulty:Doubled", "quick").judge("GEMM", ["alpha_of_neighbour"])
    (result,) = batch.results
    assert result.status == "not judged"
    assert "the candidate itself fails GEMM on" in result.message
    assert batch.candidate_failures
    assert batch.candidate_failures[0].rule == "GEMM"


class WritesIntoTokens(Eager):
    def quantize_grouped(self, x, masked_m, global_scale_enc):
        x.mul_(2)
        return super().quantize_grouped(x, masked_m, global_scale_enc)


def test_a_mutant_that_writes_into_shared_tensors_spoils_them_for_nobody():
    eager = load_named("eager")
    bench = Bench("eager", "quick")
    shared = SharedProblem(
        eager, parse_problem("2x4x32x32:4,3:normal:1"), bench.measured.known, rule("QUANT")
    )
    illegal = [sum(c.illegal for c in shared.judge(c_).comparisons) for c_ in (WritesIntoTokens(), eager)]
    assert illegal[0] > 0, "QUANT judges what the quantizer was given, not what it made of it"
    assert illegal[1] == 0
    x = shared._context.tensors.x.clone()
    shared.judge(WritesIntoTokens())
    assert (shared._context.tensors.x == x).all()


def test_problems_are_distinct_repeatable_and_quick_ones_come_first():
    traits, profile = traits_of(load_named("physical")), find_profile("quick")
    drawn = drawn_problems(rule("GEMM"), traits, profile)
    assert 36 <= len(drawn) <= profile.examples
    assert len({(p.seed, p.extras) for p in drawn}) > 0.9 * len(drawn), "not variations of a few"
    assert drawn == drawn_problems(rule("GEMM"), traits, profile)
    assert not [p for p in drawn if misfit(p, rule("GEMM"), traits)]
    ordered = quick_first(drawn)
    assert sorted(map(str, ordered)) == sorted(map(str, drawn))
    quick = [p for p in drawn if work(p) <= QUICK and p.tokens]
    assert ordered[: len(quick)] == quick
    assert len(quick) < len([p for p in drawn if p.tokens])
    empty = [p for p in drawn if not p.tokens]
    assert empty
    assert set(ordered[-len(empty) :]) == set(empty)


@pytest.mark.parametrize(
    ("fault", "candidate", "stages", "where"),
    [
        ("alpha_of_neighbour", "physical", STAGES, ("physical", "GEMM")),
        ("operand_strides_ignored", "physical", STAGES, ("eager", "LAYOUT-IN")),
        ("alpha_of_neighbour", "my:Kernel", ["quantize_grouped"], ("", "GEMM")),
        ("alpha_of_neighbour", "my:Kernel", ["masked_moe"], ("", "GEMM")),
    ],
)
def test_where_a_fault_is_planted(fault, candidate, stages, where):
    place = place_of(find_fault(fault), candidate, stages)
    assert (place.candidate, place.rule) == where
    assert bool(place.reason) == (not place.candidate)


def test_a_kernel_that_is_one_call_is_judged_by_the_layers_rule():
    place = place_of(find_fault("gate_up_swapped"), "my:Kernel", ["masked_moe"])
    assert (place.candidate, place.rule) == ("my:Kernel", "MOE")

"""Candidates that are compiled for each shape: every problem of a run has one of those that they declare."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings

from harness import Traits
from harness.candidates.humming_masked import HummingMasked
from harness.mutants.problems import drawn_problems
from harness.problems.pool import another, in_pool, pool_of
from harness.problems.problem import Drawn, Problem, parse_problem
from harness.problems.profiles import PROFILES, find_profile
from harness.problems.reach import FAR, far_for
from harness.problems.strategies import simpler
from harness.problems.values import seldom_for, seldom_problem
from harness.rules import RULES, find_rules
from harness.running.outcome import traits_from
from harness.verdict import UsageError

SHAPES = ((4, 128, 128), (2, 256, 128), (4, 512, 256), (256, 128, 128), (2, 7168, 128))
TRAITS = Traits(device="cpu", k_multiple=128, n_multiple=128, shapes=SHAPES)


def shape(problem: Problem) -> tuple[int, int, int]:
    return problem.experts, problem.hidden, problem.inter


@pytest.mark.parametrize("rule", ["GEMM", "REPEAT", "SHAPES"])
def test_drawn_problems_have_the_declared_shapes(rule: str) -> None:
    drawn = drawn_problems(find_rules([rule])[0], TRAITS, find_profile("quick"), 0)
    assert {shape(problem) for problem in drawn} <= set(pool_of(TRAITS, find_profile("quick")))
    assert {shape(another(problem, TRAITS)) for problem in drawn} <= set(SHAPES)


def test_another_shape_differs_in_hidden_alone_where_the_pool_has_one() -> None:
    traits = Traits(shapes=((3, 256, 128), (3, 512, 128), (3, 512, 256), (4, 128, 128)))
    found = {
        shape(another(parse_problem(f"v2:3x8x256x128:8,0,5:normal:{seed}"), traits)) for seed in range(6)
    }
    assert found == {(3, 512, 128)}
    assert shape(another(parse_problem("v2:3x8x512x256:8,0,5:normal:1"), traits)) != (3, 512, 256)


def test_a_pool_has_what_fits_a_profile_and_at_least_one() -> None:
    assert pool_of(TRAITS, find_profile("quick")) == [(4, 128, 128), (2, 256, 128), (4, 512, 256)]
    assert len(pool_of(TRAITS, find_profile("deep"))) == 4
    assert pool_of(Traits(shapes=((9, 1024, 1024),)), find_profile("quick")) == [(9, 1024, 1024)]
    for profile in PROFILES.values():
        pairs = {pair for _, hidden, inter in pool_of(HummingMasked().traits, profile) for pair in ((2 * inter, hidden), (hidden, inter))}  # fmt: skip
        assert len(pairs) >= (9 if profile.name == "quick" else 12)


def test_what_reaches_far_and_what_is_seldom_takes_the_nearest() -> None:
    reached = {far.name: far.problem(far.most, TRAITS, 1) for far in FAR}
    assert {shape(problem) for problem in reached.values()} <= set(SHAPES)
    assert reached["experts"].experts == 256
    assert reached["hidden"].hidden == 7168
    assert max(reached["capacity"].masked_m) == 3
    assert reached["rows"].masked_m[0] == 2048
    assert len(far_for("GEMM", TRAITS, all_of_them=True)) == len(FAR)
    every = [seldom_problem(extras, TRAITS, 3) for rule in RULES for extras in seldom_for(rule.drawn, TRAITS)]
    assert {shape(problem) for problem in every} == {(4, 128, 128)}


def test_experts_that_are_left_out_take_their_rows_with_them() -> None:
    problem = parse_problem("v2:3x8x128x128:8,0,5:normal:1")
    assert in_pool(problem, TRAITS).masked_m == (8, 0, 5, 0)
    fewer = parse_problem("v2:3x8x256x128:8,0,5:normal:1")
    assert in_pool(fewer, TRAITS).masked_m == (8, 0)
    assert in_pool(problem, Traits(device="cpu")) is problem


def test_a_failing_problem_is_made_simpler_within_the_pool() -> None:
    seen = set()

    @settings(max_examples=20, database=None)
    @given(simpler(parse_problem("v2:4x8x512x256:8,0,5,1:normal:1"), TRAITS))
    def draw(problem: Problem) -> None:
        seen.add(shape(problem))

    draw()
    assert seen <= {(4, 128, 128), (4, 512, 256)}
    assert seen


def test_shapes_survive_json_and_are_checked() -> None:
    assert traits_from({"shapes": [list(each) for each in SHAPES]}).shapes == SHAPES
    for wrong in ((4, 100, 128), (4, 128), (0, 128, 128), (4, 128, 128.0)):
        with pytest.raises(UsageError, match="shapes must"):
            Traits(k_multiple=128, n_multiple=128, shapes=(wrong,))
    with pytest.raises(UsageError, match="experts that it accepts"):
        Traits(max_experts=2, shapes=(SHAPES[0],))


def test_an_empty_choice_of_seldom_traps_is_no_error() -> None:
    """Of float16 tokens, finite ones, no trap that is seldom is left."""
    traits = Traits(device="cpu", activation_format="fp16", shapes=SHAPES)
    assert drawn_problems(
        find_rules(["REPEAT"])[0], traits, find_profile("quick"), random.Random(1).randrange(9)
    )
    assert Drawn(finite=True).traps_for(traits)

"""Problems that reach far: each reaches its own extent and little else, and a PASS states no more than was judged."""

from __future__ import annotations

import pytest

from harness.candidates.protocol import Traits
from harness.problems.reach import FAR, extents_of, far_for, in_words, larger, reached_by_all
from harness.rules import RULES
from harness.running.misfit import misfit

TRAITS = [Traits(), Traits(k_multiple=16, n_multiple=16), Traits(m_multiple=128), Traits(min_experts=4)]
MOST = {far.name: far.most for far in FAR}
WORK = 1 << 28  # multiply-adds of the first GEMM: a quarter of a second in float32 on a core


@pytest.mark.parametrize("traits", TRAITS, ids=["64", "16", "whole tiles", "four experts"])
@pytest.mark.parametrize("far", FAR, ids=lambda far: far.name)
def test_it_reaches_its_extent_at_little_work_and_fits_what_is_declared(far, traits) -> None:
    problem = far.problem(far.most, traits, 7)
    assert extents_of(problem)[far.name] >= far.most
    assert 2 * problem.tokens * problem.hidden * problem.inter <= WORK
    assert not any(misfit(problem, rule, traits) for rule in RULES)
    if far.name != "capacity":
        assert problem.experts * problem.capacity * max(problem.hidden, problem.inter) < 1 << 23


@pytest.mark.parametrize("far", FAR, ids=lambda far: far.name)
@pytest.mark.parametrize("size", [1, 2, 17])
def test_a_smaller_one_is_the_same_problem_with_less_of_it(far, size) -> None:
    traits = Traits(k_multiple=16, n_multiple=16)
    near, most = (extents_of(far.problem(n, traits, 7)) for n in (size, far.most))
    assert all(near[name] <= most[name] for name in most)
    assert near[far.name] < most[far.name]


def test_together_they_reach_every_extent_and_many_tiles() -> None:
    reached: dict[str, int] = {}
    for far in FAR:
        reached = larger(reached, extents_of(far.problem(far.most, Traits(k_multiple=16), 0)))
    assert all(reached[name] >= most for name, most in MOST.items())
    assert reached["tiles"] > 148, "a second wave on the largest GPU"


def test_every_extent_is_some_smaller_rules_too_and_slow_candidates_have_none() -> None:
    shared = {far_for(rule.id, Traits(), all_of_them=False)[0].name for rule in RULES if not rule.reaches}
    assert shared == set(MOST)
    assert {rule.id for rule in RULES if rule.reaches} == {"QUANT", "ACT", "GEMM", "PIPELINE", "MOE"}
    assert far_for("GEMM", Traits(far=False), all_of_them=True) == []


def test_a_pass_states_what_the_least_of_the_rules_has_reached() -> None:
    small = extents_of(FAR[0].problem(3, Traits(k_multiple=16, n_multiple=16), 0))
    large = dict.fromkeys(small, 10000)
    assert reached_by_all([large, {}, small]) == small
    assert in_words(small) == (
        "up to experts 3, capacity 8, rows 2, tokens 4, k 16, n 16, tiles 3; beyond that not tested"
    )
    assert in_words(reached_by_all([])) == ""

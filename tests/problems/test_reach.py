"""Problems that reach far: each reaches its own extent and little else, and a PASS states no more than was judged."""

from __future__ import annotations

import pytest

from harness.candidates.protocol import Traits
from harness.problems.reach import AROUND, FAR, OFFSETS, extents_of, far_for, in_words, larger, reached_by_all
from harness.rules import RULES
from harness.running.misfit import misfit

TRAITS = [Traits(), Traits(k_multiple=16, n_multiple=16), Traits(m_multiple=128), Traits(min_experts=4)]
MOST = {far.name: far.most for far in FAR}
COUNTED = {"neighbours": "experts", "counts": "rows"}  # what is counted where a problem's name is no extent's
WORK = 1 << 28  # multiply-adds of the first GEMM: a quarter of a second in float32 on a core


@pytest.mark.parametrize("traits", TRAITS, ids=["64", "16", "whole tiles", "four experts"])
@pytest.mark.parametrize("far", FAR, ids=lambda far: far.name)
def test_it_reaches_its_extent_at_little_work_and_fits_what_is_declared(far, traits) -> None:
    problem = far.problem(far.most, traits, 7)
    assert extents_of(problem)[COUNTED.get(far.name, far.name)] >= far.most
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
    name = COUNTED.get(far.name, far.name)
    assert near[name] < most[name]


def test_together_they_reach_every_extent_and_many_tiles() -> None:
    reached: dict[str, int] = {}
    for far in FAR:
        reached = larger(reached, extents_of(far.problem(far.most, Traits(k_multiple=16), 0)))
    assert all(reached[COUNTED.get(name, name)] >= most for name, most in MOST.items())
    assert reached["tiles"] > 148, "a second wave on the largest GPU"


def test_every_extent_is_some_smaller_rules_too_and_slow_candidates_have_none() -> None:
    shared = {far_for(rule.id, Traits(), all_of_them=False)[0].name for rule in RULES if not rule.reaches}
    assert shared == set(MOST) - {"counts"}
    assert {rule.id for rule in RULES if rule.reaches} == {
        "QUANT", "ACT", "GEMM", "PIPELINE", "MOE", "ROUTED", "ROUTE", "DISPATCH", "COMBINE", "LOAD", "EP",
    }  # fmt: skip
    assert far_for("GEMM", Traits(far=False), all_of_them=True) == []


def test_every_pattern_of_empty_neighbours_is_there() -> None:
    (far,) = (far for far in FAR if far.name == "neighbours")
    counts = far.problem(far.most, Traits(), 0).masked_m
    full = "".join("1" if count else "0" for count in counts)
    assert {full[at : at + 4] for at in range(len(full) - 3)} == {f"{n:04b}" for n in range(16)}
    assert all(f"1{'0' * empty}1" in full for empty in range(4))
    assert full[0] == full[-1] == "0"
    assert max(counts) > 128 > min(count for count in counts if count), "one expert has two tiles"


@pytest.mark.parametrize("rule", sorted(OFFSETS))
@pytest.mark.parametrize("traits", [Traits(), Traits(k_multiple=48, m_multiple=128)], ids=["64", "48"])
def test_an_offset_past_32_bits_is_one_of_a_valid_row_and_little_work(rule: str, traits: Traits) -> None:
    offset = OFFSETS[rule]
    problem = offset.problem(offset.most, traits, 7)
    columns = problem.hidden if rule == "QUANT" else 2 * problem.inter
    first = (problem.experts - 1) * problem.capacity * columns
    assert first >= 1 << 31, "the last expert's first element"
    assert problem.masked_m[-1] > 0
    assert 2 * problem.tokens * problem.hidden * problem.inter <= WORK
    assert problem.experts * (columns if rule != "QUANT" else 128) * 128 < 1 << 25, "weights are small"
    assert not any(misfit(problem, each, traits) for each in RULES)
    assert offset.device_bytes >= 8 * 2 * (first + problem.capacity * columns) > 1 << 35


def test_an_offset_past_32_bits_is_for_a_gpu_with_enough_free_memory() -> None:
    def offsets(rule: str, traits: Traits, free: int, *, all_of_them: bool = True) -> int:
        far = far_for(rule, traits, all_of_them=all_of_them, device_bytes=free)
        return sum(each.device_bytes > 0 for each in far)

    enough = OFFSETS["GEMM"].device_bytes
    assert enough < 100 << 30, "an H200 has 139 GiB"
    assert [offsets(rule, Traits(), enough) for rule in ("QUANT", "ACT", "GEMM", "MOE")] == [1, 1, 1, 0]
    assert offsets("GEMM", Traits(), enough - 1) == 0
    assert offsets("GEMM", Traits(), 0) == 0
    assert offsets("GEMM", Traits(device="cpu"), enough) == 0
    assert offsets("GEMM", Traits(far=False), enough) == 0
    assert offsets("WRITES", Traits(), enough, all_of_them=False) == 0


def test_a_pass_states_what_the_least_of_the_rules_has_reached() -> None:
    small = extents_of(FAR[0].problem(3, Traits(k_multiple=16, n_multiple=16), 0))
    large = dict.fromkeys(small, 10000)
    assert reached_by_all([large, {}, small]) == small
    assert in_words(small) == (
        "up to experts 3, capacity 8, rows 2, tokens 4, k 16, n 16, tiles 3; beyond that not tested"
    )
    assert in_words(reached_by_all([])) == ""


def test_an_extent_that_a_rule_does_not_know_is_the_others() -> None:
    reached = reached_by_all([{"experts": 9, "hidden": 64, "inter": 128}, {"experts": 4, "tokens": 7}])
    assert in_words(reached) == "up to experts 4, tokens 7, k 64, n 64; beyond that not tested"
    assert in_words({"experts": 4, "hidden": 7168}) == "up to experts 4, hidden 7,168; beyond that not tested"


@pytest.mark.parametrize("traits", TRAITS, ids=["64", "16", "whole tiles", "four experts"])
@pytest.mark.parametrize("far", AROUND, ids=lambda far: far.name)
def test_a_problem_around_the_layer_fits_what_is_declared_and_has_several_ranks(far, traits) -> None:
    problem = far.problem(far.most, traits, 7)
    assert not any(misfit(problem, rule, traits) for rule in RULES)
    assert problem.experts >= 2 * traits.min_experts


def test_a_rule_around_the_layer_reaches_for_the_extents_that_it_knows() -> None:
    far = far_for("ROUTE", Traits(), all_of_them=True, around=("experts", "tokens"))
    assert [one.name for one in far] == ["experts", "tokens"]
    assert far_for("ROUTE", Traits(far=False), all_of_them=True, around=("experts", "tokens")) == []

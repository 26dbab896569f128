"""Criteria of other projects: hand-computed cases at their edges, what they are known to let through, and the table."""

from __future__ import annotations

import pytest
import torch

from harness.mutants.bench import Bench
from harness.mutants.upstream import (
    CRITERIA,
    calc_diff,
    cosine,
    matched,
    share_within,
    share_within_sum,
    spread,
)
from harness.mutants.upstream_run import CASES, judge_upstream, upstream_table

BY_NAME = {criterion.name: criterion for criterion in CRITERIA}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_hand_computed_numbers():
    assert calc_diff(tensor(0.0), tensor(1.0)) == pytest.approx(1 - 2 * 2 / (1 + 4))  # of 1 and 2
    assert calc_diff(tensor(3.0, -1.0), tensor(3.0, -1.0)) == 0
    assert cosine(tensor(1.0, 0.0), tensor(1.0, 1.0)) == pytest.approx(0.5**0.5)
    assert cosine(tensor(2.0, 4.0), tensor(1.0, 2.0)) == pytest.approx(1.0)
    assert spread(tensor(0.0, 2.0), 1.5, 0.05) == pytest.approx(
        1.5 * 2**0.5
    )  # the deviation of 0 and 2 is sqrt(2)
    assert spread(tensor(1.0, 1.0), 1.5, 0.05) == 0.05


def test_a_share_counts_elements_that_are_close_in_either_sense():
    reference = tensor(1.0, 1.0, 1.0, 100.0)
    got = tensor(1.04, 1.2, 1.6, 140.0)  # off by 0.04, 20 %, 60 %, 40 %
    assert share_within(got, reference, 0.05, 0.5, 0.75)
    assert not share_within(got, reference, 0.05, 0.5, 0.76)
    assert share_within(got, reference, 0.05, 0.19, 0.25)
    assert not share_within(tensor(1.0, 1.0, 1.0, torch.nan), reference, 0.05, 0.5, 0.75)


def test_a_sum_of_tolerances_is_wider_than_either():
    reference, got = tensor(1.0, -2.0), tensor(1.9, -3.9)  # 0.1 + 0.85 = 0.95, and 1.8
    assert share_within_sum(got, reference, 0.1, 0.85, 0.5)
    assert not share_within_sum(got, reference, 0.1, 0.85, 0.6)


def test_a_match_is_wrong_only_where_both_errors_are():
    reference, got = (
        tensor(0.001, 100.0, 1.0),
        tensor(0.005, 100.9, 1.02),
    )  # small absolute, small relative, neither
    assert matched(got, reference, 1e-2, 2 / 3)
    assert not matched(got, reference, 1e-2, 0.7)


@pytest.fixture(scope="module")
def normal():
    return torch.randn(1000, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def altered(reference, how):
    rows = reference.clone()
    rows[:220] = 0
    return {
        "zeros": torch.zeros_like(reference),
        "x0.5": reference * 0.5,
        "x1.49": reference * 1.49,
        "x3": reference * 3,
        "22 % of rows": rows,
        "one row": torch.cat((torch.zeros_like(reference[:1]), reference[1:])),
        "nan": torch.full_like(reference, torch.nan),
    }[how]


@pytest.mark.parametrize(
    ("name", "passes", "fails"),
    [
        ("flashinfer 97 %", ["x0.5", "x1.49", "22 % of rows", "one row"], ["zeros", "x3", "nan"]),
        ("flashinfer 80 %", ["x0.5", "x1.49", "one row"], ["zeros", "x3", "nan"]),
        ("sglang 0.05", [], ["zeros", "x0.5", "x1.49", "one row", "nan"]),
        ("sglang 92.5 %", ["zeros", "x0.5", "x1.49", "22 % of rows"], ["x3", "nan"]),
        ("vllm 0.1", [], ["x0.5", "one row", "nan"]),
        ("vllm 0.2", [], ["x0.5", "one row", "nan"]),
        ("flashinfer-bench 95 %", ["one row"], ["zeros", "x0.5", "x1.49", "22 % of rows", "nan"]),
        ("deepep bf16", [], ["x0.5", "one row", "nan"]),
        ("deepep fp8", ["one row"], ["x0.5", "zeros", "nan"]),
        ("cosine 0.95", ["x0.5", "x3", "one row"], ["zeros", "22 % of rows", "nan"]),
        ("cosine 0.97", ["x0.5", "x3", "one row"], ["zeros", "22 % of rows", "nan"]),
    ],
)
def test_what_each_criterion_lets_through_on_normal_data(name, passes, fails, normal):
    accepts = BY_NAME[name].accepts
    assert accepts(normal, normal)
    assert {how: accepts(altered(normal, how), normal) for how in (*passes, *fails)} == {
        **dict.fromkeys(passes, True),
        **dict.fromkeys(fails, False),
    }


def test_every_criterion_is_covered_above():
    (mark,) = [
        m for m in test_what_each_criterion_lets_through_on_normal_data.pytestmark if m.name == "parametrize"
    ]
    assert [case[0] for case in mark.args[1]] == list(BY_NAME)


def test_the_healthy_candidate_is_accepted_and_a_fault_judged_on_both_data_sets():
    bench = Bench("physical", "quick")
    found = judge_upstream(bench, ["", "output_scaled"])
    assert all(all(verdicts) for verdicts in found[""].values())
    assert set(found["output_scaled"]) == {f"{data} {form}" for data, form in CASES}
    doubled = dict(zip(BY_NAME, found["output_scaled"]["upstream everywhere"], strict=True))
    assert not doubled["sglang 0.05"]
    assert doubled["sglang 92.5 %"] is False  # two GEMMs: the output is 8 times too large
    weakest = dict(zip(BY_NAME, found["output_scaled"]["upstream weakest"], strict=True))
    assert weakest["cosine 0.97"]
    assert weakest["flashinfer 97 %"]


def test_the_table_names_what_is_missed():
    n = len(CRITERIA)
    cases = [f"{data} {form}" for data, form in CASES]
    healthy = {"upstream everywhere": [True] * n, "calibrated everywhere": [False] + [True] * (n - 1)}
    seen = {case: [True] + [False] * (n - 1) for case in cases}
    table = upstream_table([{"": healthy, "a": seen}, {"b": {case: [True] * n for case in cases}}])
    first, second = table.criteria[:2]
    assert first.missed == {case: ["a", "b"] for case in cases}
    assert second.missed == {case: ["b"] for case in cases}
    assert first.accepts_candidate == {"upstream": True, "calibrated": False}
    assert table.faults == ["a", "b"]
    assert table.missed_by_all == {case: ["b"] for case in cases}
    assert upstream_table([{}]) is None

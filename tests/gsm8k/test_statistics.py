"""Intervals and tests against exact arithmetic and published figures."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate, combinations

import pytest

from harness.gsm8k.statistics import (
    at_least,
    at_most,
    drawn_at_most,
    exceeded_at,
    log_binomial,
    mcnemar_mid_p,
    mean_interval,
    paired_interval,
    questions_to_decide,
    questions_to_see,
    rank_sum_p,
    refuted_at,
    smallest_visible_drop,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (0, 100, 0, 0.0370),
        (0, 1319, 0, 0.0029),
        (1253, 1319, 0.9368, 0.9605),
        (190, 200, 0.9104, 0.9726),
        (5, 5, 0.5655, 1),
    ],
)
def test_wilson_gives_published_intervals(right, n, low, high):
    found = wilson(right, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_everything_and_bad_counts_are_refused():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)
    with pytest.raises(ValueError, match="between 0 and n, got 6 of 5"):
        wilson(6, 5)


@pytest.mark.parametrize("n", [1, 7, 32, 200])
@pytest.mark.parametrize("p", [Fraction(1, 20), Fraction(1, 2), Fraction(19, 20)])
def test_binomial_tails_are_exact(n, p):
    exact_at_most = accumulate(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1))
    for k, exact in enumerate(exact_at_most):
        assert at_most(k, n, float(p)) == pytest.approx(float(exact), rel=1e-9)
        assert at_least(k + 1, n, float(p)) == pytest.approx(float(1 - exact), rel=1e-9, abs=1e-300)


def test_binomial_ends():
    assert at_most(3, 5, 0.0) == 1
    assert at_most(3, 5, 1.0) == 0
    assert at_most(5, 5, 1.0) == 1
    assert at_most(-1, 5, 0.5) == 0
    assert log_binomial(6, 5, 0.5) == -math.inf


@pytest.mark.parametrize(("n", "expected"), [(32, 0.5), (32, 0.9), (1319, 0.5), (1319, 0.95), (20, 0.3)])
def test_refuted_at_is_the_last_count_below_alpha(n, expected):
    k = refuted_at(n, expected, 1e-6)
    assert k < 0 or at_most(k, n, expected) < 1e-6
    assert at_most(k + 1, n, expected) >= 1e-6


def test_a_wave_of_32_at_one_half_is_dead_at_two_and_misses_21_percent_of_5_percent_servers():
    assert refuted_at(32, 0.5, 1e-6) == 2
    assert at_least(3, 32, 0.05) == pytest.approx(0.2139, abs=1e-4)


def test_exceeded_at_is_the_first_count_that_shows_a_share_above_the_limit():
    k = exceeded_at(1319, 0.05, 1e-3)
    assert at_least(k, 1319, 0.05) < 1e-3 <= at_least(k - 1, 1319, 0.05)
    assert exceeded_at(1, 0.05, 1e-3) == 2


@pytest.mark.parametrize(
    ("drawn", "marked", "n"), [(8, 5, 20), (12, 15, 20), (1, 1, 3), (0, 4, 9), (300, 1250, 1319)]
)
def test_shares_of_a_draw_are_exact(drawn, marked, n):
    chances = [
        Fraction(math.comb(marked, i) * math.comb(n - marked, drawn - i), math.comb(n, drawn))
        for i in range(drawn + 1)
    ]
    for k, exact in enumerate(accumulate(chances)):
        assert drawn_at_most(k, drawn, marked, n) == pytest.approx(float(exact), rel=1e-9, abs=1e-300)
    assert drawn_at_most(-1, drawn, marked, n) == 0
    with pytest.raises(ValueError, match="must fit into n"):
        drawn_at_most(0, n + 1, marked, n)


@pytest.mark.parametrize(
    "second", [(9, 12, 13, 14, 15, 5, 11), (8, 3, 12, 7, 14, 5, 11), (1, 3, 2, 7, 4, 5, 6)]
)
def test_rank_sums_have_their_permutation_distribution(second):
    """The normal approximation is within 0.006 of every rearrangement counted, at sizes that are never judged."""
    first = [i for i in range(15) if i not in second]
    sums = [sum(chosen) for chosen in combinations([*first, *second], len(second))]
    exact = sum(total >= sum(second) for total in sums) / len(sums)
    assert rank_sum_p(first, second) == pytest.approx(exact, abs=0.006)
    assert rank_sum_p([1.0] * 9, [1.0] * 9) == rank_sum_p([1.0] * 4, [2.0] * 9) == 1


def test_mcnemar_mid_p_against_exact_arithmetic():
    exact = Fraction(sum(math.comb(8, i) for i in range(1)), 2**8) + Fraction(math.comb(8, 1), 2**9)
    assert mcnemar_mid_p(7, 1) == pytest.approx(float(exact))
    assert mcnemar_mid_p(0, 0) == 0.5
    assert mcnemar_mid_p(5, 5) == pytest.approx(0.5)
    assert mcnemar_mid_p(1, 7) == pytest.approx(1 - mcnemar_mid_p(7, 1))


def test_paired_interval_gives_the_published_example():
    """Airway hyper-responsiveness, Fagerland, Lydersen and Laake 2014: n 21, 7 and 1 discordant."""
    found = paired_interval(7, 1, 21)
    assert (found.low, found.high) == pytest.approx((-0.508, -0.013), abs=5e-4)
    with pytest.raises(ValueError, match="must fit into n, got 15, 10 of 21"):
        paired_interval(15, 10, 21)


def test_connors_sample_sizes_and_smallest_drops():
    """docs: one-sided at 0.05 (confidence 0.9), power 0.8; 2 points of drop."""
    noises = (0.006, 0.017, 0.034, 0.05)
    assert [round(questions_to_see(0.02, noise, 0.9)) for noise in noises] == [400, 570, 833, 1080]
    drops = [smallest_visible_drop(1319, noise, 0.9) for noise in noises]
    assert [round(100 * drop, 2) for drop in drops] == [0.81, 1.16, 1.52, 1.78]
    assert smallest_visible_drop(2, 0.05) is None
    assert questions_to_see(0.0, 0.05) == math.inf


@pytest.mark.parametrize(
    ("share", "threshold"), [(0.94, 0.93), (0.92, 0.93), (0.5, 0.63), (0.0, 0.01), (1.0, 0.99)]
)
def test_questions_to_decide_is_where_wilsons_interval_leaves_the_threshold(share, threshold):
    n = questions_to_decide(share, threshold)
    assert not wilson(share * n, n).holds(threshold)
    assert wilson(share * (n - 2), n - 2).holds(threshold)
    assert questions_to_decide(share, share) is None
    assert questions_to_decide(0.5, 0.5 + 1e-9) is None


def test_mean_interval_is_the_normal_one():
    found = mean_interval([0.0, 1.0] * 50)
    assert (found.low, found.high) == pytest.approx((0.5 - 1.96 * 0.0503, 0.5 + 1.96 * 0.0503), abs=1e-3)

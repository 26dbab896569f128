"""Answers that depend on when they were asked: found where they do, and not more often than stated where they do not."""

from __future__ import annotations

import random

import pytest

from harness.gsm8k.decision import full_decision
from harness.gsm8k.drift import FEWEST, change_points, find_drift, length_drift
from harness.gsm8k.judgement import DRIFT_ALPHA, WARNING_ALPHA
from harness.gsm8k.sample import in_order
from harness.gsm8k.statistics import exceeded_at

WRONG = "so\n#### 17"


@pytest.fixture
def asked(make_sample):
    """Samples in the order of their requests, right or wrong as given."""
    right, wrong = make_sample(0), make_sample(0, WRONG)

    def build(results, tokens=lambda order: 100):
        return [
            {**(right if ok else wrong), "index": i, "order": i, "usage": {"completion_tokens": tokens(i)}}
            for i, ok in enumerate(results)
        ]

    return build


def results(before, after, seed=0):
    """Right and wrong answers: (requests, accuracy) before a change and behind it."""
    draw = random.Random(seed)
    return [draw.random() < share for n, share in (before, after) for _ in range(n)]


@pytest.mark.parametrize(
    ("before", "after"),
    [((300, 0.95), (1019, 0.0)), ((1300, 0.95), (19, 0.0)), ((150, 0.95), (50, 0.0)), ((40, 0.0), (1279, 0.95))],
)  # fmt: skip
def test_a_change_point_is_found_and_placed(asked, before, after):
    found = find_drift(asked(results(before, after)), "strict")
    assert found.certain
    assert found.sudden
    assert abs(found.request - 1 - before[0]) <= 3  # wrong answers beside the change belong to either side
    assert f"change point at request {found.request:,}" in str(found)


def test_a_slow_decay_is_found_and_told_in_thirds(asked):
    draw = random.Random(5)
    found = find_drift(asked([draw.random() < 0.96 - 0.45 * i / 400 for i in range(400)]), "strict")
    assert found.certain
    assert not found.sudden
    assert str(found).startswith("accuracy changes along the requests, 0.8")
    assert found.thirds[0] > found.thirds[1] > found.thirds[2]


@pytest.mark.parametrize("n", [FEWEST, 33, 200, 1319])
def test_change_points_are_few_and_leave_something_on_both_sides(n):
    points = change_points(n)
    assert points == sorted(set(points))
    assert points[0] == 8
    assert points[-1] == n - 8
    assert len(points) <= 20


def false_alarms(draw, asked, runs, questions):
    found = []
    for _ in range(runs):
        accuracy = draw.uniform(0.3, 0.99)
        found.append(find_drift(asked([draw.random() < accuracy for _ in range(questions)]), "strict").p)
    return found


def test_healthy_runs_do_not_drift(asked):
    alarms = false_alarms(random.Random(11), asked, 300, 200)
    assert sum(p < WARNING_ALPHA for p in alarms) < exceeded_at(300, WARNING_ALPHA, 1e-3)
    assert sum(p < DRIFT_ALPHA for p in alarms) < exceeded_at(300, DRIFT_ALPHA, 1e-3)


@pytest.mark.long
def test_ten_thousand_healthy_runs_drift_as_rarely_as_stated(asked):
    alarms = false_alarms(random.Random(12), asked, 10_000, 1319)
    assert sum(p < WARNING_ALPHA for p in alarms) < exceeded_at(10_000, WARNING_ALPHA, 1e-3)
    assert sum(p < DRIFT_ALPHA for p in alarms) < exceeded_at(10_000, DRIFT_ALPHA, 1e-3)


def test_a_run_that_drifts_fails_and_says_where(asked):
    decision = full_decision(asked(results((150, 0.95), (50, 0.0))), min_accuracy=0.5)
    assert decision.label == "FAIL (degenerate)"
    assert decision.reason.startswith("change point at request 15")
    assert "0.00 in the" in decision.reason
    assert decision.details["drift"]["requests"] == 200


def test_a_model_that_died_on_the_way_is_not_called_dead_and_one_that_always_was_is(asked):
    assert full_decision(asked(results((300, 0.95), (1019, 0.0)))).label == "FAIL (degenerate)"
    assert full_decision(asked(results((300, 0.1), (1019, 0.0)))).label == "FAIL (dead)"


def test_a_weaker_sign_is_a_warning(asked):
    found = asked(results((100, 0.95), (100, 0.80), seed=3))
    drift = find_drift(found, "strict")
    assert DRIFT_ALPHA < drift.p < WARNING_ALPHA
    decision = full_decision(found, compared=True)
    assert decision.label == "PASS"
    assert decision.details["warnings"] == [str(drift)]


def test_lengths_may_drift_a_little_and_are_named_when_they_drift_much(asked):
    draw = random.Random(2)
    some = {i: draw.lognormvariate(5, 0.4) for i in range(600)}

    def told(factor):
        return length_drift(asked([True] * 600, tokens=lambda i: round(some[i] * (1 + factor * i / 600))))

    assert told(0.1) == told(-0.1) == told(0.3) == ""
    assert told(1.5).startswith("the length of answers changes along the requests: median 1")
    decision = full_decision(asked([True] * 600, tokens=lambda i: 100 + i), compared=True)
    assert decision.label == "PASS"
    assert "the length of answers changes" in decision.details["warnings"][0]


def test_records_without_an_order_are_judged_without_it(make_sample):
    samples = [make_sample(i, "so\n#### 18" if i < 150 else WRONG) for i in range(200)]
    assert in_order(samples) == []
    assert full_decision(samples, compared=True).label == "PASS"
    assert find_drift(samples[: FEWEST - 1], "strict") is None

"""Healthy runs FAIL as rarely as stated: accuracy 0.3 to 0.99, flip noise 1 to 3 %, a weak drift of lengths."""

from __future__ import annotations

import random

import pytest

from harness.gsm8k.drift import length_drift
from harness.gsm8k.healthy_runs import healthy_pair, healthy_verdicts
from harness.gsm8k.judgement import DRIFT_ALPHA
from harness.gsm8k.sample import in_order
from harness.gsm8k.statistics import exceeded_at


def failed(runs, seed):
    found = healthy_verdicts(runs, seed)
    assert sum(found.values()) == runs
    assert found["PASS"] > 0.7 * runs
    return sum(times for label, times in found.items() if "FAIL" in label)


def test_a_few_healthy_runs_do_not_fail():
    assert failed(12, seed=1) < exceeded_at(12, DRIFT_ALPHA, 1e-3)


@pytest.mark.long
def test_ten_thousand_healthy_runs_fail_at_most_at_the_stated_rate():
    """Drift is the only test that a healthy run fails at all, once in a thousand."""
    assert failed(10_000, seed=0) < exceeded_at(10_000, DRIFT_ALPHA, 1e-3)


def test_the_simulated_runs_are_what_they_are_said_to_be():
    draw = random.Random(3)
    for _ in range(3):
        first, second = healthy_pair(draw)
        pairs = list(zip(first, second, strict=True))
        flips = sum(a["flexible"] != b["flexible"] for a, b in pairs) / 1319
        assert 0 <= flips <= 0.05
        assert sorted(s["order"] for s in second) == list(range(1319))
        assert sum(s["wave"] for s in second) == 32
        assert length_drift(in_order(second)) == ""
        assert 0.25 < sum(s["flexible"] for s in second) / 1319 <= 1

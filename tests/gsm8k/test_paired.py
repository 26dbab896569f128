"""A run against a baseline: the interval of the difference, what it may lose, how its answers end."""

from __future__ import annotations

import json
import math

import pytest

from harness.gsm8k.counts import count
from harness.gsm8k.judgement import MORE_CUT
from harness.gsm8k.paired import judge_pairing, pair_counts, paired_decision, pairs_to_decide
from harness.verdict import UsageError

WRONG = "so\n#### 17"
LONG = {"finish_reason": "length", "tokens": 1024}


@pytest.fixture
def run(make_run):
    return make_run


def decided(decision, word, qualifier=""):
    json.dumps(decision.details, allow_nan=False)
    assert (decision.word, decision.qualifier) == (word, qualifier), decision.reason
    return decision.reason


def test_a_baseline_is_compared_question_by_question(run):
    baseline = run((1260,), (59, WRONG))
    reason = decided(paired_decision(baseline, baseline), "PASS")
    assert "0 lost, 0 gained of 1,319" in reason
    worse = run((60, ""), (1200,), (59, WRONG))
    reason = decided(paired_decision(worse, baseline), "FAIL", "accuracy")
    assert reason.startswith("-4.55 points against the baseline")
    assert "60 of the lost are now: empty" in reason
    better = run((1319,))
    decided(paired_decision(better, baseline), "PASS")


def test_a_small_real_loss_passes_and_a_large_allowance_too(run):
    baseline = run((1319,))
    reason = decided(paired_decision(run((10, WRONG), (1309,)), baseline), "PASS")
    assert "the loss is no accident, but smaller than allowed" in reason
    decided(paired_decision(run((60, WRONG), (1259,)), baseline, max_drop=0.1), "PASS")
    decided(paired_decision(run((10, WRONG), (1309,)), baseline, max_drop=0.001), "FAIL", "accuracy")


def test_too_few_questions_leave_a_comparison_undecided(run):
    baseline = run((48,), (2, WRONG))
    decision = paired_decision(run((1, WRONG), (47,), (1,), (1, WRONG)), baseline)
    assert "would decide" in decided(decision, "UNKNOWN", "undecided")
    assert decision.details["flip_noise"] == pytest.approx(0.04)
    assert decision.details["smallest_drop"] > 0.02
    refused = {"error": "HTTP 500"}
    decided(paired_decision(run((5, None, refused)), run((5,))), "UNKNOWN", "undecided")


def test_another_task_is_no_baseline(run):
    other = [{**sample, "question": "another"} for sample in run((5,))]
    with pytest.raises(UsageError, match="another question 0"):
        paired_decision(run((5,)), other)


def test_flip_noise_is_measured_where_there_are_repeats(run):
    first, second = run((40,), (10, WRONG)), run((10, WRONG), (40,), repeat=1)
    decision = paired_decision([*first, *second], run((50,)))
    assert decision.details["noise_measured"]
    assert decision.details["flip_noise"] == pytest.approx((20 * 1 + 0) / 50 / 2, abs=0.21)
    assert count([*first, *second]).independent == 50


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"),
    [
        (34, 15, ("UNKNOWN", "undecided")),  # 1.44 points lost, beyond chance; up to 2.5 are not excluded
        (15, 12, ("PASS", "")),
        (60, 15, ("FAIL", "accuracy")),  # 3.4 points, at least 2.1
        (40, 14, ("UNKNOWN", "undecided")),  # 1.97 points
        (12, 1, ("PASS", "")),  # a real loss, smaller than allowed
    ],
)
def test_a_drop_fails_only_where_it_is_shown_to_exceed_what_is_allowed(lost, gained, verdict):
    found = pair_counts(lost, gained, 1319, 0.95)
    decision = judge_pairing(found, 0.02, "strict", 0.95)
    reason = decided(decision, *verdict)
    inside = found.interval.low <= -0.02 <= found.interval.high
    assert (decision.word == "UNKNOWN") == inside
    if inside:
        assert (
            "a drop of 2 points may be exceeded; worse than the baseline, by how much is not decided; about"
            in reason
        )
        assert (
            f"about {decision.details['questions_to_decide']:,} questions, or --repeat, would decide"
            in reason
        )


@pytest.mark.parametrize(("lost", "gained"), [(34, 15), (25, 15), (45, 10)])
def test_the_questions_to_decide_are_those_at_which_the_interval_leaves_the_allowed_drop(lost, gained):
    found = pair_counts(lost, gained, 1319, 0.95)
    needed = pairs_to_decide(found, 0.02)
    more = [
        pair_counts(round(lost * n / 1319), round(gained * n / 1319), n, 0.95)
        for n in (needed * 9 // 10, needed * 11 // 10)
    ]
    open_, closed = (found.interval.low <= -0.02 <= found.interval.high for found in more)
    assert open_
    assert not closed
    assert pairs_to_decide(pair_counts(20, 0, 1000, 0.95), 0.02) is None
    assert math.isclose(found.difference, (gained - lost) / 1319)


def test_answers_that_end_at_the_limit_are_held_against_the_baselines(run):
    baseline = run((1300,), (19, "#### 18 and on", LONG))
    same = paired_decision(baseline, baseline)
    decided(same, "PASS")
    assert same.details["warnings"] == []
    some = paired_decision(run((1260,), (59, "#### 18 and on", LONG)), baseline)
    decided(some, "PASS")
    assert some.details["warnings"] == ["59 of 1,319 answers end at the token limit, 19 of the baseline's"]
    many = paired_decision(run((1160,), (159, "#### 18 and on", LONG)), baseline)
    reason = decided(many, "FAIL", "degenerate")
    assert reason.startswith(
        "159 of 1,319 answers end at the token limit, 19 of the baseline's: at least 8 points more"
    )
    assert f"{100 * MORE_CUT:g} are allowed" in reason


@pytest.mark.parametrize(("factor", "word"), [(1.2, ""), (0.8, ""), (1.8, "longer"), (0.5, "shorter")])
def test_most_answers_much_longer_or_shorter_than_the_baselines_are_a_warning(run, factor, word):
    baseline = run((200,))
    changed = [{**s, "usage": {"completion_tokens": round(100 * factor)}} for s in baseline]
    decision = paired_decision(changed, baseline)
    said = [f"200 of 200 answers are 1.5 times {word} than the baseline's"] if word else []
    assert decision.details["warnings"] == said
    uncounted = [{**s, "usage": {"completion_tokens": None}} for s in baseline]
    assert paired_decision(uncounted, baseline).details["warnings"] == []


def test_a_weak_model_is_compared_with_what_it_was(run):
    weak, broken = run((26,), (1293, WRONG)), run((1319, WRONG))
    decided(paired_decision(weak, weak), "PASS")
    assert "worse than the baseline" in decided(paired_decision(broken, weak), "UNKNOWN", "undecided")
    decided(paired_decision(broken, weak, max_drop=0.005), "FAIL", "accuracy")

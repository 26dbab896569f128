"""Verdicts of waves, runs and comparisons, and the sentences that explain them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.gsm8k.classify import AnswerClass
from harness.gsm8k.counts import DEFAULT_LIMITS, NEVER_STOPS, PAST_STOP, Counts, checked_limits, count
from harness.gsm8k.decision import expected_of, full_decision, smallest_wave, smoke_decision
from harness.gsm8k.paired import spread
from harness.verdict import ExitCode, UsageError, Verdict

FLOOD, WRONG, LOOSE = "!" * 400, "so\n#### 17", "The answer is 18"


@pytest.fixture
def run(make_run):
    return make_run


def decided(decision, word, qualifier=""):
    json.dumps(decision.details, allow_nan=False)
    assert (decision.word, decision.qualifier) == (word, qualifier), decision.reason
    assert "\n" not in decision.reason
    return decision.reason


def test_a_wave_finds_a_dead_model_and_names_the_flood(run):
    reason = decided(smoke_decision(run((1,), (47, FLOOD))), "FAIL", "dead")
    assert reason.startswith("47 of 48 answers are floods of '!': NaN logits are likely")
    assert "1 of 48 right" in reason


def test_a_wave_never_passes_and_says_what_it_misses(run):
    decision = smoke_decision(run((32,)))
    reason = decided(decision, "NOT DEAD")
    assert "21 % of waves at an accuracy of 0.05" in reason
    assert decision.exit_code == ExitCode.PASS
    assert decision.verdict == Verdict.PASS


@pytest.mark.parametrize(("right", "word"), [(0, "FAIL"), (2, "FAIL"), (3, "NOT DEAD")])
def test_a_wave_of_32_is_dead_at_two_right(run, right, word):
    assert smoke_decision(run((right,), (32 - right, WRONG))).word == word


def test_a_wave_is_not_dead_because_of_its_format(run):
    decided(smoke_decision(run((32, LOOSE)), limits={"extractors disagree": 1.0}), "NOT DEAD")
    reason = decided(smoke_decision(run((2,), (30, LOOSE))), "FAIL", "format")
    assert reason.startswith("strict 0.06 but flexible 1.00: the format, not the model")
    decided(smoke_decision(run((32, LOOSE)), metric="flexible"), "NOT DEAD")


def test_an_expectation_that_a_wave_cannot_refute_is_said(run):
    reason = decided(smoke_decision(run((32, WRONG)), expect=0.3), "NOT DEAD")
    assert "cannot refute an accuracy of 0.3 at all; 39 questions could" in reason
    assert smallest_wave(0.3) == 39
    assert smallest_wave(0.5) == 32


def test_unanswered_questions_in_a_wave_are_neither_right_nor_wrong(run):
    refused = {"error": "connection refused"}
    reason = decided(smoke_decision(run((32, None, refused))), "UNKNOWN", "infra")
    assert reason == "none of 32 questions was answered"
    decided(smoke_decision(run((20,), (12, None, refused))), "UNKNOWN", "infra")
    decided(smoke_decision(run((29, WRONG), (3, None, refused))), "UNKNOWN", "infra")
    # Dead even if both of them had been right.
    decided(smoke_decision(run((30, WRONG), (2, None, refused))), "FAIL", "dead")


def test_a_full_run_without_a_threshold_is_not_judged_and_says_so(run):
    decision = full_decision(run((150,), (10, WRONG)))
    reason = decided(decision, "UNKNOWN", "not judged")
    assert reason.startswith("neither dead nor degenerate; accuracy (strict) 0.9375 (")
    assert reason.endswith("was not judged: give --min-accuracy, --baseline, --preset or --against URL")
    assert decision.exit_code == ExitCode.UNKNOWN
    assert "judged by the comparison" in decided(full_decision(run((150,)), compared=True), "PASS")


def test_half_floods_are_degenerate(run):
    reason = decided(full_decision(run((150,), (150, FLOOD))), "FAIL", "degenerate")
    assert reason == "150 of 300 answers are floods of '!': NaN logits are likely (limit 1 %)"
    decided(smoke_decision(run((16,), (16, FLOOD))), "FAIL", "degenerate")


@pytest.mark.parametrize(
    ("answer", "options", "sentence"),
    [
        ("", {}, "60 of 300 answers are empty"),
        (None, {}, "60 of 300 answers are null or reasoning only: look at the server's reasoning parser"),
        (
            None,
            {"finish_reason": "length", "reasoning": "Let me"},
            "60 of them cut at the token limit: --max-tokens is too small",
        ),
        ("So she has 17. " * 60, {}, "60 of 300 answers repeat themselves"),
        ("~!@# $%^ &*()_ +{}|: <>? " * 6, {}, "60 of 300 answers are not text"),
        ("~" * 100, {}, "60 of 300 answers are floods of '~': broken logits are likely"),
    ],
)
def test_every_degenerate_class_fails_a_run_by_itself(run, answer, options, sentence):
    assert sentence in decided(full_decision(run((240,), (60, answer, options))), "FAIL", "degenerate")


def test_degenerate_classes_below_their_limits_fail_together(run):
    few = [(25, ""), (25, None), (25, "So she has 17. " * 60)]
    decided(full_decision(run((375,), few[0])), "UNKNOWN", "not judged")
    reason = decided(full_decision(run((325,), *few)), "FAIL", "degenerate")
    assert reason.startswith("75 of 400 answers: degenerate (limit 10 %)")


def test_cut_answers_are_named_with_their_length(run):
    cut = {"finish_reason": "length", "tokens": 256}
    reason = decided(full_decision(run((207,), (93, "She has 12", cut))), "FAIL", "truncated")
    assert reason.startswith("31 % cut at 256 tokens")
    assert "cut at 256 tokens" in decided(smoke_decision(run((32, "She has 12", cut))), "FAIL", "truncated")
    raised = {"cut at the token limit": 0.4}
    decided(full_decision(run((207,), (93, "She has 12", cut)), limits=raised, compared=True), "PASS")


def test_the_format_is_told_apart_from_the_model(run):
    reason = decided(full_decision(run((282, LOOSE), (18, WRONG))), "FAIL", "format")
    assert reason.startswith("strict 0.00 but flexible 0.94: the format, not the model")
    reason = decided(full_decision(run((270,), (24, LOOSE), (6, WRONG)), min_accuracy=0.95), "FAIL", "format")
    assert "below 0.95, but flexible 0.980: the format, not the model" in reason
    decided(full_decision(run((282, LOOSE), (18, WRONG)), metric="flexible", min_accuracy=0.9), "PASS")


def test_the_threshold_is_judged_on_the_interval(run):
    samples = run((285,), (15, WRONG))
    assert "at least 0.9" in decided(full_decision(samples, min_accuracy=0.9), "PASS")
    reason = decided(full_decision(samples, min_accuracy=0.94), "UNKNOWN", "undecided")
    assert "0.94 is inside the interval; about 2,167 questions" in reason
    reason = decided(full_decision(samples, min_accuracy=0.99), "FAIL", "accuracy")
    assert "below 0.99; 15 of 300 answers are text with a wrong number" in reason
    assert "no number of questions would decide" in full_decision(samples, min_accuracy=0.95).reason


def test_over_one_percent_unanswered_is_infra_whatever_the_accuracy(run):
    refused = {"error": "HTTP 500"}
    for answer in (WRONG, "so\n#### 18"):
        decided(full_decision(run((1290, answer), (29, None, refused)), min_accuracy=0.9), "UNKNOWN", "infra")
    decided(full_decision(run((1313,), (6, None, refused)), min_accuracy=0.9), "PASS")
    decided(full_decision(run((1290,), (29, None, refused)), max_unanswered=0.05, compared=True), "PASS")
    decided(full_decision([]), "UNKNOWN", "infra")


def test_a_run_calls_a_model_dead_that_the_wave_let_through(run):
    reason = decided(full_decision(run((66,), (1253, WRONG))), "FAIL", "dead")
    assert "1253 of 1319 answers are text with a wrong number" in reason or "same answer" in reason
    decided(full_decision(run((520,), (799, WRONG)), expect=0.3), "UNKNOWN", "not judged")


def test_the_text_says_how_a_weak_model_is_told_from_a_broken_one(run):
    different = [(1, f"so it is {i}\n#### {i}") for i in range(20, 1300)]
    reason = decided(full_decision(run((26,), *different)), "FAIL", "dead")
    assert "1280 of 1306 answers are text with a wrong number" in reason
    assert (
        "only what it was before tells it from a broken one: give --baseline with a record of it, or --expect"
        in reason
    )
    reason = decided(smoke_decision(run((1,), *different[:31])), "FAIL", "dead")
    assert "give --baseline" in reason


def test_against_a_baseline_a_weak_model_is_not_dead_and_a_broken_one_is(run):
    weak = run((26,), (1293, WRONG))
    had = count(weak)
    assert expected_of(0.5, had) == pytest.approx(13 / 1319)
    assert expected_of(0.5, count(run((1319,)))) == 0.5
    assert expected_of(0.5, None) == 0.5
    decided(smoke_decision(run((32, WRONG)), baseline=had), "NOT DEAD")
    decided(full_decision(weak, baseline=had, compared=True), "PASS")
    strong = count(run((1250,), (69, WRONG)))
    reason = decided(full_decision(run((40,), (1279, WRONG)), baseline=strong, compared=True), "FAIL", "dead")
    assert "give --baseline" not in reason
    decided(smoke_decision(run((32, WRONG)), baseline=strong), "FAIL", "dead")
    assert smallest_wave(0.0) == 100_000


def test_one_answer_to_every_question_is_named(run):
    reason = decided(smoke_decision(run((32, "I have counted it: #### 17"))), "FAIL", "dead")
    assert "32 different questions got the same answer 'I have counted it: #### 17'" in reason


def test_limits_are_checked():
    assert checked_limits({"empty": 0.2})["empty"] == 0.2
    with pytest.raises(UsageError, match="no limit is known for the class 'emtpy'"):
        checked_limits({"emtpy": 0.2})
    with pytest.raises(UsageError, match="between 0 and 1, got 5"):
        checked_limits({"empty": 5})
    with pytest.raises(UsageError, match="metric must be one of"):
        full_decision(Counts(1, 1, 1, 1, 1, 1), metric="exact")


def test_repeats_do_not_narrow_the_interval(run):
    once = run((285,), (15, WRONG))
    thrice = [sample for repeat in range(3) for sample in run((285,), (15, WRONG), repeat=repeat)]
    single, repeated = full_decision(once).details, full_decision(thrice).details
    assert repeated["repeats"] == 3
    assert repeated["accuracy"]["strict"]["low"] == pytest.approx(single["accuracy"]["strict"]["low"])
    found = spread(thrice)
    assert found.accuracies == [0.95] * 3
    assert (found.deviation, found.flip_noise) == pytest.approx((0, 0))
    assert spread(once) is None


def test_the_document_has_every_class_with_its_limit():
    text = (Path(__file__).parents[2] / "docs" / "gsm8k.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(): cells[3].strip() for line in text.splitlines() if len(cells := line.split("|")) == 6
    }
    assert "`degenerate`" in text
    for name in (*AnswerClass, NEVER_STOPS, PAST_STOP):
        limit = DEFAULT_LIMITS.get(name)
        assert rows[name] == ("" if limit is None else f"{100 * limit:g} %")
    assert rows["all degenerate ones together"] == f"{100 * DEFAULT_LIMITS['degenerate']:g} %"

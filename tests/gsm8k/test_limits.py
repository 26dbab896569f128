"""Limits of classes: relative to what is right, to where the text stands, to how answers end, and to a baseline."""

from __future__ import annotations

import json

import pytest

from harness.gsm8k.counts import count
from harness.gsm8k.decision import full_decision, smoke_decision
from harness.gsm8k.outcome import combine

FLOOD, WRONG, LOOSE = "!" * 400, "so\n#### 17", "The answer is 18"
LONG = {"finish_reason": "length", "tokens": 1024}


def decided(decision, label):
    json.dumps(decision.details, allow_nan=False)
    assert decision.label == label, decision.reason
    return decision.reason


@pytest.mark.parametrize("right", [20, 44, 110])
def test_a_weak_model_that_loses_every_strict_answer_fails_by_its_format(make_run, right):
    reason = decided(
        full_decision(make_run((right, LOOSE), (200 - right, WRONG)), expect=0.05), "FAIL (format)"
    )
    assert f"strict finds 0 of the {right} right answers (0.00; 0.00 to 0." in reason
    assert reason.startswith(f"strict 0.00 but flexible {right / 200:.2f}: the format, not the model")
    assert "limit 25 %; --metric flexible judges the number alone" in reason


def test_the_format_limit_is_a_share_of_the_right_answers(make_run):
    decision = full_decision(make_run((150, LOOSE), (850,), (319, WRONG)), compared=True)
    decided(decision, "PASS")
    (rate,) = (r for r in decision.details["classes"] if r["name"] == "extractors disagree")
    assert (rate["judged"], rate["of"], rate["share"]) == (150, 1000, 0.15)
    decided(
        full_decision(make_run((150, LOOSE), (300,), (869, WRONG)), expect=0.2, compared=True),
        "FAIL (format)",
    )


def test_numbers_that_are_right_by_chance_are_no_lost_format(make_run):
    """A model at 1 % whose text ends with the right number now and then: more lost than found, and chance all the same."""
    decided(full_decision(make_run((13,), (25, LOOSE), (1281, WRONG)), expect=0.005, compared=True), "PASS")
    decided(
        full_decision(make_run((13,), (60, LOOSE), (1246, WRONG)), expect=0.005, compared=True),
        "FAIL (format)",
    )


def test_answers_in_the_reasoning_are_scored_there_and_fail_by_the_format(make_run):
    told = {"reasoning": "so\n#### 18"}
    wrong = {"reasoning": "so\n#### 17"}
    reason = decided(full_decision(make_run((191, None, told), (9, None, wrong))), "FAIL (format)")
    assert reason.startswith(
        "200 of 200 answers stand in reasoning_content, without content: strict reads 0.955 (0.917 to 0.976) there"
    )
    decided(smoke_decision(make_run((30, None, told), (2, "", wrong))), "FAIL (format)")
    few = full_decision(make_run((1300,), (19, None, told)), compared=True)
    decided(few, "PASS")
    weak = decided(full_decision(make_run((60, None, told), (140, None, wrong)), expect=0.2), "FAIL (format)")
    assert "strict reads 0.300" in weak
    dead = decided(full_decision(make_run((5, None, told), (195, None, wrong))), "FAIL (dead)")
    assert "strict reads 0.025" in dead


def test_half_a_thought_is_no_answer(make_run):
    cut = {"reasoning": "Let me see. so\n#### 18", **LONG}
    assert count(make_run((32, None, cut))).any_right == 0
    reason = decided(smoke_decision(make_run((32, None, cut))), "FAIL (truncated)")
    assert "32 of them cut at the token limit: --max-tokens is too small" in reason


def test_a_server_that_never_stops_is_named_though_every_answer_is_right(make_run):
    reason = decided(
        full_decision(make_run((191, "#### 18 and on", LONG), (9, WRONG, LONG))), "FAIL (degenerate)"
    )
    assert reason.startswith(
        "200 of 200 answers end by length, at 1024 tokens, 191 of them behind a right answer"
    )
    decided(smoke_decision(make_run((32, "#### 18 and on", LONG))), "FAIL (degenerate)")
    decided(
        full_decision(make_run((300, "#### 18 and on", LONG), (700,), (319, WRONG))), "UNKNOWN (not judged)"
    )
    cut = full_decision(make_run((400, "#### 18 and on", LONG), (500, "She has", LONG), (419,)), expect=0.3)
    decided(cut, "FAIL (truncated)")


def test_some_that_do_not_stop_are_a_warning(make_run):
    decision = combine([full_decision(make_run((110, "#### 18 and on", LONG), (1209,)), min_accuracy=0.9)])
    assert "; warning: 110 of 1,319 answers: never stops, right and ended by length" in decided(
        decision, "PASS"
    )
    decided(full_decision(make_run((40, "#### 18 and on", LONG), (1279,)), min_accuracy=0.9), "PASS")
    assert full_decision(make_run((40, "#### 18 and on", LONG), (1279,))).details["warnings"] == []


def test_ignored_stop_strings_are_named(make_run):
    on = "so\n#### 18\n\nQuestion: What is 2 + 2?\nAnswer: 4"
    stop = ("Question:", "</s>")
    reason = decided(full_decision(make_run((100, on), (100,)), stop=stop), "FAIL (degenerate)")
    assert reason.startswith(
        "100 of 200 answers go on behind a stop string that was sent: the server ignores"
    )
    one = full_decision(make_run((1, on), (199,)), stop=stop, min_accuracy=0.9)
    assert one.details["warnings"] == ["1 of 200 answers: past a stop string"]
    kept = full_decision(make_run((200, "so\n#### 18\n\nQuestion:")), stop=stop, min_accuracy=0.9)
    assert kept.details["warnings"] == []


@pytest.mark.parametrize(
    ("floods", "label"), [(0, "NOT DEAD"), (1, "NOT DEAD"), (2, "UNKNOWN (degenerate)"), (3, "UNKNOWN (degenerate)"), (6, "FAIL (degenerate)")]
)  # fmt: skip
def test_a_few_floods_in_a_wave_are_not_called_alive(make_run, floods, label):
    decision = combine([smoke_decision(make_run((floods, FLOOD), (32 - floods,)))])
    reason = decided(decision, label)
    if floods == 1:
        assert reason.endswith("; warning: 1 of 32 answers: one-token flood")
    if floods == 3:
        assert reason.startswith(
            "3 of 32 answers are floods of '!': NaN logits are likely (limit 1 %; chance 0.004"
        )
        assert decision.exit_code == 2


def test_ends_of_another_kind_are_a_warning(make_run):
    decision = full_decision(make_run((60, "#### 18", {"finish_reason": "abort"}), (140,)), min_accuracy=0.9)
    assert decision.details["warnings"] == [
        "60 of 200 answers ended neither by themselves nor at the limit: 60 by 'abort'"
    ]
    decided(decision, "PASS")


def test_what_a_baseline_had_is_not_held_against_a_run(make_run):
    """A small model loops in a third of its answers; with its own record as a baseline that is no fault."""
    loops = "So she has 17. " * 60
    weak = make_run((26,), (430, loops), (863, WRONG))
    decided(full_decision(weak, expect=0.01), "FAIL (degenerate)")
    same = full_decision(weak, baseline=count(weak), compared=True)
    decided(same, "PASS")
    worse = make_run((26,), (560, loops), (733, WRONG))
    reason = decided(full_decision(worse, baseline=count(weak), compared=True), "FAIL (degenerate)")
    assert "(limit 35.2 %, the most that the baseline allows)" in reason
    broken = make_run((900,), (419, FLOOD))
    decided(full_decision(broken, baseline=count(broken), compared=True), "FAIL (degenerate)")

"""The class of an answer, and the number it states by value."""

from __future__ import annotations

import random
import signal

import pytest

from harness.gsm8k.classify import classify, flood_unit, is_loop, is_not_text
from harness.gsm8k.numeric import extract_number, same_number
from harness.gsm8k.scoring import Scores

WRONG = Scores(
    strict=False,
    flexible=False,
    numeric=False,
    extracted_strict="[invalid]",
    extracted_flexible="7",
    extracted_numeric="7",
)
NONE = Scores(
    strict=False,
    flexible=False,
    numeric=False,
    extracted_strict="[invalid]",
    extracted_flexible=",,",
    extracted_numeric=None,
)
ALL = Scores(
    strict=True,
    flexible=True,
    numeric=True,
    extracted_strict="18",
    extracted_flexible="18",
    extracted_numeric="18",
)
STRICT = Scores(
    strict=True,
    flexible=False,
    numeric=True,
    extracted_strict="18",
    extracted_flexible="2",
    extracted_numeric="18",
)
LOOSE = Scores(
    strict=False,
    flexible=True,
    numeric=True,
    extracted_strict="[invalid]",
    extracted_flexible="18",
    extracted_numeric="18",
)

SOLUTION = (
    "She has 3*4 = <<3*4=12>>12 bolts.\nEach month she adds $10 + $10 + $10 + $10 + $10 + $10 + $10 + $10 + $10 = $90.\n"
    "| day | bolts |\n|---|---|\n| 1 | 5 |\n| 2 | 5 |\n| 3 | 5 |\n--------------------\n\\frac{18}{2} = 9, so 7"
)


def soup(seed, alphabets):
    chosen = random.Random(seed)
    return "".join(chr(chosen.randrange(*chosen.choice(alphabets))) for _ in range(400))


@pytest.mark.parametrize(
    ("text", "finish_reason", "reasoning", "scores", "expected"),
    [
        ("so\n#### 18", "stop", None, ALL, "right"),
        ("so\n#### 18" + "!" * 900, "length", None, ALL, "right"),
        ("so 17", "stop", None, WRONG, "wrong number"),
        (SOLUTION, "stop", None, WRONG, "wrong number"),
        ("I do not know", "stop", None, NONE, "no final answer"),
        ("the answer is 18", "stop", None, LOOSE, "extractors disagree"),
        ("#### 18\n\nThat took 2 steps", "stop", None, STRICT, "extractors disagree"),
        ("#### 18\n\nThat took 2 steps", "length", None, STRICT, "extractors disagree"),
        ("", "stop", None, None, "empty"),
        (" \n", "stop", "", None, "empty"),
        (None, "stop", None, None, "null or reasoning only"),
        (None, "length", "Let me think", None, "null or reasoning only"),
        ("", "length", "Let me think", None, "null or reasoning only"),
        ("She has 12 and so", "length", None, WRONG, "cut at the token limit"),
        ("She has 12 and 18", "length", None, LOOSE, "cut at the token limit"),
        ("!" * 1024, "length", None, NONE, "one-token flood"),
        ("The answer " + "!" * 300, "length", None, NONE, "one-token flood"),
        (" the" * 256, "length", None, NONE, "one-token flood"),
        ("\n" * 256, "length", None, NONE, "one-token flood"),
        ("0" * 256, "length", None, WRONG, "one-token flood"),
        ("So she has 17. " * 60, "length", None, WRONG, "repetition loop"),
        (
            "Step one is this. " + "And then we add the two and the three to get five. " * 20,
            "stop",
            None,
            WRONG,
            "repetition loop",
        ),
        ("\ufffd" * 3 + " abc", "stop", None, NONE, "not text"),
        ("..,. ,," * 9, "stop", None, NONE, "not text"),
        ("\x01\x02\x03 hello", "stop", None, NONE, "not text"),
    ],
)
def test_every_class_has_its_answers(text, finish_reason, reasoning, scores, expected):
    assert classify(text, finish_reason, reasoning, scores) == expected


def test_an_answer_with_text_needs_scores():
    with pytest.raises(ValueError, match="scores must be given"):
        classify("so 17", "stop", None, None)


def test_tokens_of_many_alphabets_are_not_text_and_one_language_is():
    mixed = soup(1, [(0x61, 0x7B), (0x410, 0x450), (0x4E00, 0x9000), (0xAC00, 0xD000), (0x621, 0x64A)])
    assert is_not_text(mixed)
    assert not is_not_text(soup(2, [(0x4E00, 0x9000)]))
    assert not is_not_text("Она купила 12 яблок, café, naïve: 18 \u2014 das wären 6 €.")


def test_flood_names_its_piece():
    assert flood_unit("!" * 64) == "!"
    assert flood_unit("!!!! " * 64) == "!"
    assert flood_unit(" the" * 64) == "the"
    assert flood_unit("!" * 15) == ""
    assert flood_unit("one two three " * 30) == ""


def test_loops_need_length():
    assert not is_loop("$10 + " * 12)
    assert is_loop("a b c d e f g. " * 30)


@pytest.fixture
def _stops_a_pattern_that_runs_away():
    """After 30 seconds of processor time, so that a busy machine makes no difference."""

    def stop(*_):
        raise TimeoutError("a pattern takes more than linear time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 30)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.usefixtures("_stops_a_pattern_that_runs_away")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" " * 600_000 + "x", "one-token flood"),
        ("ab " * 300_000, "one-token flood"),
        (soup(3, [(0x20, 0x7F)]) * 1_000, "repetition loop"),
        ("a" * 600_000 + "b" * 600_000, "one-token flood"),
    ],
    ids=["spaces", "two letters", "a soup again and again", "two floods"],
)
def test_an_answer_that_is_hard_for_the_patterns_does_not_hold_up_a_run(text, expected):
    """Ten times what a limit of 32,768 tokens lets through; in quadratic time each would take an hour."""
    assert classify(text, "length", None, NONE) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("#### 18.00", "18"),
        ("#### $1,234.50", "1234.5"),
        ("so 18. Wait, let me check...", "18"),
        ("#### 18\n\nThat took 2 steps", "18"),
        ("The answer is **$18**.", "18"),
        ("the final answer is $\\boxed{1{,}000}$", "1000"),
        ("\u22127", "-7"),
        ("-5", "-5"),
        ("5-3", "3"),
        ("x=18", "18"),
        ("A: 18", "18"),
        ("18%", "18"),
        ("The answer is 12. #### 13", "13"),
        ("..,. ,,", None),
        ("", None),
        ("no number", None),
        ("9" * 2000, None),
    ],
)
def test_the_number_that_a_text_states(text, number):
    assert extract_number(text) == number


def test_numbers_are_compared_by_value():
    assert same_number("18.00", "18")
    assert same_number("1,000", "1000")
    assert not same_number("-5", "5")
    assert not same_number(None, "5")
    assert not same_number("five", "5")

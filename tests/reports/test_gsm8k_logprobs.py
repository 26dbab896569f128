"""The logprob comparison on the page: its figures, one bar a question, the places furthest apart; odd records do no harm."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from harness.records.parts.gsm8k_logprobs import Gsm8kLogprobPlace, Gsm8kLogprobQuestion, Gsm8kLogprobs
from harness.records.record import RunRecord
from reports import gsm8k
from reports.gsm8k_logprobs import logprob_section
from tests.reports.test_gsm8k_section import HOSTILE, checked

PLACE = Gsm8kLogprobPlace(104, "reference", 7, " 216", 3.5, " 21", " 216")
FOUND = Gsm8kLogprobs(
    planned=32,
    allowed=1e-4,
    tokens=4180,
    kl=0.0123,
    within=2e-7,
    within_server=3e-7,
    agreement=0.9871,
    questions=[Gsm8kLogprobQuestion(100 + i, 10.0**-i, 1e-7 * (i % 2), 0.0, 60, 58) for i in range(8)],
    worst=[PLACE] * 20,
)


def page(found: object) -> str:
    return str(gsm8k.section(RunRecord("run", "now", [], gsm8k={"verdict": "FAIL", "logprobs": found})))


def test_figures_questions_and_places_are_there():
    markup = page(asdict(FOUND))
    text = " ".join(" ".join(checked(markup).text).split())
    for said in (
        "0.012",
        "2e-07",
        "0.0001",
        "98.71 %",
        "4,180",
        "4 of 8 questions above 0.0001; largest 1",
        "216",
    ):
        assert said in text
    assert text.count("question 10") == 8
    assert markup.count("<rect") == 8
    assert "nan" not in markup


def test_a_run_without_a_comparison_says_nothing_of_it():
    assert "Logprobs" not in page(None)
    assert logprob_section({}) is None


def test_servers_that_are_the_same_to_the_bit_have_no_chart():
    same = asdict(Gsm8kLogprobs(questions=[Gsm8kLogprobQuestion(1, 0.0, 0.0, 0.0, 9, 9)], agreement=1.0))
    text = " ".join(checked(page(same)).text)
    assert "100.00 %" in text
    assert "KL of each question" not in text


@pytest.mark.parametrize(
    "broken",
    [
        3,
        {"questions": 4, "worst": 5, "kl": "x"},
        {
            "questions": [
                None,
                {},
                {"kl": float("nan"), "within": 1},
                {"kl": 1e308, "within": -1, "index": HOSTILE},
            ]
        },
        {"questions": [{"kl": 1e-300, "within": 5e-324, "index": 1}], "allowed": float("inf")},
        {"worst": [dict.fromkeys(vars(PLACE), HOSTILE), 3], "kl": True, "improper": 2},
    ],
)
def test_odd_records_still_give_a_page(broken):
    markup = page(broken)
    checked(markup)
    assert "\x1b" not in markup

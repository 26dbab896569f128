"""Samples as a run records them, and answers that extractors read differently."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.gsm8k.classify import classify
from harness.gsm8k.scoring import Scores

HERE = Path(__file__).parent

AWKWARD = (
    "",
    " ",
    "#### {gold}",
    "#### {gold}.00",
    "#### ${gold}",
    "####{gold}",
    "#### {gold}\n\nThat took 2 steps",
    "#### {gold}\n#### 1",
    "so {gold}. Wait, let me check...",
    "The answer is {gold}",
    "The answer is {gold}.",
    "the answer is {gold}.",
    "The answer is ${gold}.",
    "The final answer is {gold}",
    "The final answer is {gold}. And then 5",
    "The final answer is $\\boxed{{{gold}}}$.",
    "The final answer is {gold}<|im_end|>The final answer is 0",
    "A: {gold}",
    "{gold}",
    "{gold} bolts",
    "{gold},",
    "**{gold}**",
    "-{gold}",
    "minus {gold}",
    "..,. ,,",
    "$$$$",
    "!" * 300,
    "the " * 200,
    "no number here",
    "\uff11\uff18",
    "\u2212{gold}",
    "#### 1,2,3",
    "#### -",
    "Question: what? #### {gold}",
    "\x00#### {gold}",
    "#### {gold}\ufffd",
    "#### {gold} \n",
    "#### " + "9" * 400,
)


@pytest.fixture(scope="session")
def awkward_answers():
    """Answers for a gold number."""
    return lambda gold: [text.format(gold=gold) for text in AWKWARD]


@pytest.fixture(scope="session")
def make_run(make_sample):
    """Samples from parts of (how many, answer, options of make_sample); without an answer they are right."""

    def build(*parts, repeat=0):
        samples = []
        for number, *rest in parts:
            answer = rest[0] if rest else "so\n#### 18"
            options = rest[1] if len(rest) > 1 else {}
            first = len(samples)
            samples += [make_sample(first + i, answer, repeat=repeat, **options) for i in range(number)]
        return samples

    return build


@pytest.fixture(scope="session")
def small_data():
    return {"dataset": HERE / "data" / "questions.jsonl", "fewshot": HERE / "data" / "fewshot.jsonl"}


def _scores(text):
    """Score with gold 18, as the task does for these texts."""
    stated = re.findall(r"#### (\d+)", text)[:1]
    numbers = re.findall(r"\d+", text)[-1:]
    strict, number = stated == ["18"], numbers == ["18"]
    return Scores(
        strict, number, number, *(stated or ["[invalid]"]), *(numbers or ["[invalid]"]), *(numbers or [None])
    )


def _in_reasoning(answer, reasoning):
    if answer or not reasoning:
        return None
    scores = _scores(reasoning)
    return {"strict": scores.strict, "flexible": scores.flexible, "numeric": scores.numeric}


@pytest.fixture(scope="session")
def make_sample():
    """One sample of a run; the class follows from the answer."""

    def make(
        index, answer="so\n#### 18", *, finish_reason="stop", error=None, repeat=0, tokens=100, reasoning=None
    ):
        scores = _scores(answer or "")
        unanswered = error is not None
        return {
            "index": index,
            "repeat": repeat,
            "wave": False,
            "question": f"question {index}",
            "expected": "18",
            "answer": None if unanswered else answer,
            "reasoning": reasoning,
            "class": None if unanswered else str(classify(answer, finish_reason, reasoning, scores)),
            "strict": scores.strict and not unanswered,
            "flexible": scores.flexible and not unanswered,
            "numeric": scores.numeric and not unanswered,
            "extracted_strict": scores.extracted_strict,
            "extracted_flexible": scores.extracted_flexible,
            "extracted_numeric": scores.extracted_numeric,
            "in_reasoning": _in_reasoning(answer, reasoning),
            "finish_reason": None if unanswered else finish_reason,
            "usage": {"prompt_tokens": 900, "completion_tokens": None if unanswered else tokens},
            "latency_s": None if unanswered else 0.5 + index / 1000,
            "ttft_s": None,
            "attempts": 3 if unanswered else 1,
            "error": error,
        }

    return make

"""Four systems' published answers to all of GSM8K, replayed: the scores that they were published with, in every style.

`example_model_solutions.jsonl` of github.com/openai/grade-school-math (MIT licence), beside `test.jsonl` and
`train.jsonl` in the folder that HARNESS_GSM8K_DATA names.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from harness.gsm8k.classify import classify
from harness.gsm8k.counts import METRICS
from harness.gsm8k.decision import full_decision
from harness.gsm8k.judgement import CHANCE_RIGHT
from harness.gsm8k.task import load_task

FOLDER = Path(os.environ.get("HARNESS_GSM8K_DATA", "."))
ANSWERS = FOLDER / "example_model_solutions.jsonl"
SYSTEMS = {"6b_finetuning": 286, "6b_verification": 515, "175b_finetuning": 458, "175b_verification": 742}
STYLES = {
    "raw": lambda text: text,
    "####": lambda text: text.replace("\nA: ", "\n#### "),
    "cot": lambda text: text.replace("\nA: ", "\nThe answer is ") + ".",
}
TASKS = {"raw": "gsm8k", "####": "gsm8k", "cot": "gsm8k_cot"}

pytestmark = pytest.mark.skipif(
    not ANSWERS.is_file(), reason="HARNESS_GSM8K_DATA names no folder with example_model_solutions.jsonl"
)


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def replay(rows):
    """Samples of a run in which a system's answers come in this style; `of` gives another question's answer instead."""
    tasks = {
        name: load_task(name, dataset=FOLDER / "test.jsonl", fewshot=FOLDER / "train.jsonl")
        for name in set(TASKS.values())
    }

    def run(system, style, of=None):
        task = tasks[TASKS[style]]
        places = {q.question: q for q in task.questions}
        samples = []
        for place, row in enumerate(rows):
            question = places[row["question"]]
            text = STYLES[style](rows[of[place] if of else place][system]["solution"])
            scores = task.score(question, text)
            samples.append(
                {
                    **{m: getattr(scores, m) for m in METRICS},
                    "class": str(classify(text, "stop", None, scores)),
                    "index": question.index,
                    "repeat": 0,
                    "order": place,
                    "answer": text,
                    "finish_reason": "stop",
                    "error": None,
                }
            )
        return samples

    return run


@pytest.mark.parametrize("style", ["####", "cot"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_each_system_has_its_published_score_question_by_question(rows, replay, system, style):
    samples = replay(system, style)
    labels = [row[system]["is_correct"] for row in rows]
    assert sum(labels) == SYSTEMS[system]
    assert [s["strict"] for s in samples] == labels
    assert full_decision(samples, expect=0.1).label == "UNKNOWN (not judged)"


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_style_that_strict_cannot_read_is_the_format_whatever_the_accuracy(replay, system):
    decision = full_decision(replay(system, "raw"), expect=0.15)
    assert decision.label == "FAIL (format)"
    assert f"strict finds 0 of the {SYSTEMS[system]} right answers" in decision.reason


def test_answers_are_right_by_chance_as_seldom_as_assumed(rows, replay):
    places = list(range(len(rows)))
    random.Random(1).shuffle(places)
    for system in SYSTEMS:
        for style in STYLES:
            right = sum(any(s[m] for m in METRICS) for s in replay(system, style, places))
            assert right <= CHANCE_RIGHT * len(rows), (system, style)

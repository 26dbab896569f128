"""Which runs may be compared: what differs between two setups is named, what cannot matter is not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.comparing.accuracy import compare_accuracy
from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.run import settings_facts, task_facts
from harness.gsm8k.settings import Gsm8kSettings
from harness.gsm8k.setups import differences, setup_of, setup_of_run
from harness.gsm8k.task import load_task
from harness.records.changes import Direction
from tests.records.kept_records import read


@pytest.fixture
def setup(small_data, tmp_path):
    """The setup of a run with these settings, as its record holds it."""

    def make(**settings):
        s = Gsm8kSettings(parse_base_url("http://h:1/v1"), tmp_path, **(small_data | settings))
        loading = {"dataset": s.dataset, "fewshot": s.fewshot, "num_fewshot": s.num_fewshot, "chat": s.chat}
        more = {"fewshot_as_multiturn": s.multiturn, "system_instruction": s.system_instruction}
        task = load_task(s.task, **loading, **more)
        return setup_of(
            json.loads(json.dumps(task_facts(task))), json.loads(json.dumps(settings_facts(task, s)))
        )

    return make


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"seed": 3, "concurrency": 7, "stream": True, "repeat": 2, "expect": 0.3, "questions": 5}, []),
        ({"chat": True}, ["interface chat, not completions"]),
        ({"num_fewshot": 2}, ["few-shot examples 2, not 5"]),
        ({"num_fewshot": 0, "chat": True}, ["interface chat, not completions", "few-shot examples 0, not 5"]),
        ({"max_tokens": 256}, ["answer budget 256, not 1024"]),
        ({"system_instruction": "Be brief."}, ["system instruction Be brief., not none"]),
    ],
)  # fmt: skip
def test_what_differs_is_named_and_nothing_else(setup, settings, said):
    assert differences(setup(**settings), setup()) == said


def test_another_task_explains_other_prompts(setup):
    said = differences(setup(task="gsm8k_cot"), setup())
    assert said[0] == "task gsm8k_cot, not gsm8k"
    assert not any(words in text for text in said for words in ("prompts", "definition", "rows"))


def test_examples_as_turns_matter_in_a_chat(setup):
    said = differences(setup(chat=True, multiturn=False), setup(chat=True))
    assert said == ["examples as turns False, not True"]
    assert differences(setup(multiturn=False), setup()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": "f" * 64}, "prompts {prompts}..., not ffffffff..."),
        ({"task": "e" * 64}, "task definition {task}..., not eeeeeeee..."),
        ({"data": "d" * 64, "prompts": "f" * 64}, "questions {data}..., not dddddddd..."),
    ],
)
def test_hashes_are_named_where_nothing_else_says_why(setup, change, said, small_data):
    now = setup()
    labels = {"prompts": "prompts", "task": "task definition", "data": "questions"}
    other = now | {labels[name]: value for name, value in change.items()}
    hashes = {name: now[label][:8] for name, label in labels.items()}
    assert differences(now, other) == [said.format(**hashes)]


def test_sampling_matters(setup):
    now = setup()
    assert now["generation temperature"] == 0.0
    assert differences(now | {"generation temperature": 0.7}, now) == ["generation temperature 0.7, not 0.0"]


def test_records_of_before_are_compared_by_what_they_state():
    run = read("gsm8k_pass").gsm8k_run
    older = replace(run, task={"name": "gsm_canary"}, settings={})
    assert differences(setup_of_run(run), setup_of_run(older)) == []
    assert differences(setup_of_run(run), setup_of_run(run)) == []


def test_a_report_of_two_runs_shows_unlike_setups_and_does_not_judge_them():
    good, dead = read("gsm8k_pass").gsm8k_run, read("gsm8k_dead").gsm8k_run
    chat = replace(dead, settings=dead.settings | {"chat": True})
    assert compare_accuracy("gsm8k", "", "", good, dead).direction is Direction.REGRESSION
    change = compare_accuracy("gsm8k", "", "", good, chat)
    assert (change.direction, change.paired) == (Direction.CHANGED, False)
    assert change.why_not_paired == "the setups are unlike: interface chat, not completions"
    assert compare_accuracy("gsm8k", "", "", dead, chat).direction is Direction.SAME

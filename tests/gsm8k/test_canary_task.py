"""The canary's own tasks through the whole gate: no file is given, nothing is read from the hub, answers are short."""

from __future__ import annotations

import json

import pytest

from harness.canary.problems.generate import TEST, UNSEEN
from harness.gsm8k import data as rows_of_tasks
from harness.gsm8k.questions import Asker, answer_limit
from harness.gsm8k.task import load_task


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    def read_hub(*arguments):
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr(rows_of_tasks, "read_hub", read_hub)


@pytest.mark.parametrize(
    ("task", "path", "count"), [("gsm_canary", TEST, 500), ("gsm_canary_unseen", UNSEEN, 100)]
)
def test_gold_answers_pass(serve, run_here, task, path, count):
    stage = run_here(serve(data=str(path)).url, task=task, dataset=None, fewshot=None, min_accuracy=0.95)
    assert (stage["verdict"], stage["correct_strict"], stage["questions"]) == ("PASS", count, count)
    assert stage["task"]["name"] == task
    assert stage["settings"]["max_tokens"] == 192


def test_a_dead_canary_fails_in_its_first_wave(serve, run_here):
    stage = run_here(
        serve(data=str(TEST), answer="dead", latency=0.3).url, task="gsm_canary", dataset=None, fewshot=None
    )
    assert (stage["verdict"], stage["qualifier"], stage["answered"]) == ("FAIL", "dead", 32)


@pytest.mark.parametrize(
    ("task", "asked", "limit"),
    [("gsm_canary", None, 192), ("gsm_canary", 64, 64), ("plain", None, 1024), ("plain", 2048, 2048)],
)
def test_answers_end_where_the_user_says_or_else_the_task(tmp_path, task, asked, limit):
    from harness.gsm8k.credentials import parse_base_url
    from harness.gsm8k.settings import Settings

    if task == "plain":
        task = str(tmp_path / "plain.yaml")
        (tmp_path / "plain.yaml").write_text(
            "task: plain\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: " + str(TEST) + "\n"
            'test_split: test\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
            "metric_list:\n  - metric: exact_match\ngeneration_kwargs:\n  until: ['Q:']\n",
            encoding="utf-8",
        )
    settings = Settings(endpoint=parse_base_url("http://127.0.0.1:1/v1"), out=tmp_path, max_tokens=asked)
    loaded = load_task(task)
    assert answer_limit(loaded, settings) == limit
    body = Asker(None, loaded, settings, "m").body("Question: 1 + 1?\nAnswer:")
    assert json.loads(body)["max_tokens"] == limit

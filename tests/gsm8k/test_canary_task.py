"""The canary's own tasks through the whole gate: no file is given, nothing is read from the hub, answers are short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.canary.problems.generate import TEST, UNSEEN
from harness.gsm8k import data as rows_of_tasks
from harness.gsm8k.classify import AnswerClass
from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.decision import full_decision, smoke_decision
from harness.gsm8k.questions import Asker, answer_limit, answers_fit
from harness.gsm8k.settings import Gsm8kSettings
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
        serve(data=str(TEST), answer="dead", latency=1.5).url, task="gsm_canary", dataset=None, fewshot=None
    )
    assert (stage["verdict"], stage["qualifier"], stage["questions"]) == ("FAIL", "dead", 500)
    assert stage["decisions"]["smoke"]
    assert not stage["decisions"]["full"]
    assert 32 <= stage["answered"] < 100, "a quick worker's next answers may arrive before the wave's last"


@pytest.mark.parametrize(
    ("task", "asked", "limit"),
    [("gsm_canary", None, 192), ("gsm_canary", 64, 64), ("plain", None, 1024), ("plain", 2048, 2048)],
)
def test_answers_end_where_the_user_says_or_else_the_task(tmp_path, task, asked, limit):
    from harness.gsm8k.credentials import parse_base_url
    from harness.gsm8k.settings import Gsm8kSettings

    if task == "plain":
        task = str(tmp_path / "plain.yaml")
        (tmp_path / "plain.yaml").write_text(
            "task: plain\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: " + str(TEST) + "\n"
            'test_split: test\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
            "metric_list:\n  - metric: exact_match\ngeneration_kwargs:\n  until: ['Q:']\n",
            encoding="utf-8",
        )
    settings = Gsm8kSettings(endpoint=parse_base_url("http://127.0.0.1:1/v1"), out=tmp_path, max_tokens=asked)
    loaded = load_task(task)
    assert answer_limit(loaded, settings) == limit
    body = Asker(None, loaded, settings, "m").body("Question: 1 + 1?\nAnswer:")
    assert json.loads(body)["max_tokens"] == limit


def test_a_canary_that_runs_to_the_limit_is_dead_and_not_cut_short():
    """Every right answer is shorter than 192 tokens, so the limit is never the cause; a smaller limit may be."""
    task = load_task("gsm_canary")
    for limit, fits in ((None, True), (192, True), (400, True), (64, False)):
        settings = Gsm8kSettings(
            parse_base_url("http://127.0.0.1:1/v1"), Path("out"), task="gsm_canary", max_tokens=limit
        )
        assert answers_fit(task, settings) is fits
    sample = {
        "error": None, "strict": False, "flexible": False, "numeric": False, "class": str(AnswerClass.CUT),
        "finish_reason": "length", "answer": "4 4 4", "repeat": 0, "reasoning": None, "wave": True,
        "usage": {"prompt_tokens": 1, "completion_tokens": 192},
    }  # fmt: skip
    wave = [{**sample, "index": i} for i in range(32)]
    for decide in (smoke_decision, full_decision):
        assert decide(wave).qualifier == "truncated"
        decision = decide(wave, answers_fit=True)
        assert decision.label == "FAIL (dead)"
        assert "--max-tokens" not in decision.reason

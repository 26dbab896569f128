"""Prompts and scores are lm-eval's own, question by question.

Runs on the small data beside this file, and on the published files too where HARNESS_GSM8K_DATA names their folder
(`train.jsonl` and `test.jsonl`).
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from harness.gsm8k.lm_eval_task import FEWSHOT_SEED
from harness.gsm8k.scoring import FLEXIBLE, STRICT
from harness.gsm8k.task import load_task
from harness.gsm8k.task_files import find_task

pytestmark = [
    pytest.mark.flashinfer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of lm-eval's and datasets' own dependencies
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval"),
]

CASES = [
    ("gsm8k", None, "completions"),
    ("gsm8k", None, "multiturn"),
    ("gsm8k", 3, "singleturn"),
    ("gsm8k", 0, "multiturn"),
    ("gsm8k_cot", None, "completions"),
    ("gsm8k_cot_llama", None, "completions"),
    ("gsm8k_cot_llama", None, "multiturn"),
    ("gsm8k_cot_zeroshot", None, "singleturn"),
    ("gsm8k_llama", None, "multiturn"),
    ("gsm8k_platinum", None, "completions"),
    ("gsm8k_platinum", None, "multiturn"),
    ("gsm8k_platinum_cot_llama", None, "multiturn"),
]


def plain_lm_eval(folder, name, shots, shape, *, questions, fewshot):
    """Build a task as lm-eval does, from a YAML that only swaps the data; return it with its requests."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    shared = name.startswith("gsm8k_platinum")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    files = {"test": str(questions), "train": str(questions if shared else fewshot)}
    path.write_text(
        f"include: {find_task(name)}\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {json.dumps({'data_files': files, 'cache_dir': str(folder / 'cache')})}\n"
    )
    config = load_yaml(path)
    config.pop("tag", None)
    task = ConfigurableTask(config=config)
    if shots is not None:
        task.set_config(key="num_fewshot", value=shots)
    if task.config.num_fewshot is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    chat = {} if shape == "completions" else {"apply_chat_template": True, "chat_template": as_json}
    task.build_all_requests(fewshot_as_multiturn=shape == "multiturn", **chat)
    return task


def as_json(messages, add_generation_prompt=True):
    return json.dumps(messages)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def compare(tmp_path, name, shots, shape, *, questions, fewshot, make_answers):
    ours = load_task(
        name,
        dataset=questions,
        fewshot=None if name.startswith("gsm8k_platinum") else fewshot,
        num_fewshot=shots,
        chat=shape != "completions",
        fewshot_as_multiturn=shape == "multiturn",
    )
    theirs = plain_lm_eval(tmp_path, name, shots, shape, questions=questions, fewshot=fewshot)
    assert len(ours.questions) == len(theirs.instances)
    assert ours.version == str(theirs.VERSION)
    for question, instance in zip(ours.questions, theirs.instances, strict=True):
        sent, settings = instance.arguments
        assert question.prompt == sent if shape == "completions" else question.messages == json.loads(sent)
        assert ours.generation == settings
        assert question.index == instance.doc_id
        for text in make_answers(question.expected):
            instance.resps = [ours.cut(text)]
            instance.filtered_resps = {}
            for pipeline in theirs._filters:
                pipeline.apply([instance])
            found = {key.replace("_", "-"): value for key, value in instance.filtered_resps.items()}
            right = {
                key.replace("_", "-"): theirs.process_results(instance.doc, [value])["exact_match"] == 1.0
                for key, value in instance.filtered_resps.items()
            }
            scores = ours.score(question, text)
            context = f"{name}, question {question.index}, answer {text!r:.60}"
            assert (scores.extracted_strict, scores.strict) == (found[STRICT], right[STRICT]), context
            assert (scores.extracted_flexible, scores.flexible) == (found[FLEXIBLE], right[FLEXIBLE]), context


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prompts_and_scores_are_those_of_plain_lm_eval(tmp_path, small_data, awkward_answers, case):
    files = {"questions": small_data["dataset"], "fewshot": small_data["fewshot"]}
    compare(tmp_path, *case, **files, make_answers=awkward_answers)


@pytest.mark.skipif(
    "HARNESS_GSM8K_DATA" not in os.environ, reason="HARNESS_GSM8K_DATA names no folder with GSM8K"
)
@pytest.mark.parametrize(("name", "shots", "shape"), CASES, ids=str)
def test_the_same_on_the_published_questions(tmp_path, name, shots, shape):
    folder = Path(os.environ["HARNESS_GSM8K_DATA"])

    def two_answers(gold):
        return [f"so\n#### {gold}", f"The final answer is {gold}.00"]

    files = {"questions": folder / "test.jsonl", "fewshot": folder / "train.jsonl"}
    compare(tmp_path, name, shots, shape, **files, make_answers=two_answers)

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
    ("gsm8k_boxed", None, "singleturn"),
    ("gsm8k_boxed_reasoning", None, "multiturn"),
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


MATH = (
    ("What is $1/2+1/4$?", "It is $\\boxed{\\frac{3}{4}}$."),
    ("Find $x^2$ for $x=3$.", "So $x^2=\\boxed{9}$."),
)
OTHERS = {
    "gsm_plus": [
        {"question": f"What is {n} + 1, in {n}s?", "answer": str(n + 1), "solution": f"so\n#### {n + 1}"}
        for n in range(9)
    ],
    "hendrycks_math_algebra": [{"problem": asked, "solution": told} for asked, told in MATH],
    "minerva_math_algebra": [{"problem": asked, "solution": told} for asked, told in MATH],
}
ANSWERS = [
    "#### 5", "so #### 3.", "$9$", "The answer is $\\frac{3}{4}$", "$\\frac34$", "x = $9$.", "",
    "Final Answer: The final answer is $\\frac{3}{4}$. I hope it is correct.",
    "Final Answer: The final answer is $0.75$. I hope it is correct.",
]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("shape", ["completions", "multiturn"])
def test_any_task_that_generates_and_is_scored_by_exact_match_is_lm_evals(tmp_path, name, shape):
    """With its own process_docs and process_results, where it has them."""
    if name.startswith("minerva"):
        pytest.importorskip("math_verify", reason="needs lm-eval[math]")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in OTHERS[name]))
    ours = load_task(name, dataset=path, chat=shape != "completions")
    theirs = plain_lm_eval(tmp_path, name, None, shape, questions=path, fewshot=path)
    for question, instance in zip(ours.questions, theirs.instances, strict=True):
        sent, settings = instance.arguments
        assert question.prompt == sent if shape == "completions" else question.messages == json.loads(sent)
        assert ours.generation == settings
        for text in [*ANSWERS, OTHERS[name][question.index]["solution"]]:
            instance.resps, instance.filtered_resps = [text], {}
            for pipeline in theirs._filters:
                pipeline.apply([instance])
            right = [
                theirs.process_results(instance.doc, [read])["exact_match"] == 1
                for read in instance.filtered_resps.values()
            ]
            scores = ours.score(question, text)
            assert [scores.strict, scores.flexible] == [right[0], right[-1]], (name, text)

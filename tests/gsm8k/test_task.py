"""Loading a task: data, hashes, stop strings, few-shot examples, and errors that say what to do."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from harness.gsm8k.task import load_task
from harness.verdict import UsageError

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of lm-eval's own dependencies
]


@pytest.fixture
def task(small_data):
    return load_task("gsm8k", **small_data)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(text, answer="so\n#### 1"):
    return {"question": text, "answer": answer}


def test_questions_carry_their_place_text_and_short_answer(task, small_data):
    rows = [json.loads(line) for line in small_data["dataset"].read_text().splitlines()]
    assert [q.index for q in task.questions] == list(range(len(rows)))
    assert [q.question for q in task.questions] == [r["question"] for r in rows]
    assert [q.expected for q in task.questions] == [
        r["answer"].split("#### ")[1].replace(",", "") for r in rows
    ]
    assert all(q.prompt.endswith(f"Question: {q.question}\nAnswer:") for q in task.questions)
    assert all(q.prompt.count("Question: ") == 6 for q in task.questions)


def test_prompts_do_not_change_between_versions_of_the_harness(task):
    """lm-eval 0.4.13 with seed 1234; another hash means other prompts, so other figures."""
    assert task.version == "3.0"
    assert task.hashes["prompts"] == "433495ee6872744121bc1fb84592361dcd486a68bea8dbf849dccc099f806d80"


def test_hashes_tell_data_few_shot_and_prompts_apart(small_data, task, tmp_path):
    rows = [json.loads(line) for line in small_data["dataset"].read_text().splitlines()]
    spaced = tmp_path / "spaced.jsonl"
    spaced.write_text("\n\n".join(json.dumps(r, indent=None, separators=(" , ", " : ")) for r in rows))
    same = load_task("gsm8k", dataset=spaced, fewshot=small_data["fewshot"])
    assert same.hashes["data"] == task.hashes["data"]
    assert same.hashes["prompts"] == task.hashes["prompts"]
    assert same.hashes["data_file"] != task.hashes["data_file"]
    fewer = load_task("gsm8k", **small_data, num_fewshot=2)
    assert fewer.hashes["data"] == task.hashes["data"]
    assert fewer.hashes["prompts"] != task.hashes["prompts"]


def test_at_most_four_stop_strings_are_sent_and_the_rest_is_applied_here(small_data):
    task = load_task("gsm8k_cot_llama", **small_data, chat=True)
    assert len(task.stop) == 4
    assert task.unsent_stop == ("<|im_end|>",)
    assert task.cut("The final answer is 10<|im_end|>and 7") == "The final answer is 10"
    scores = task.score(task.questions[0], "The final answer is 10<|im_end|>The final answer is 7")
    assert (scores.strict, scores.flexible, scores.numeric) == (True, True, True)
    assert any("stop string" in note for note in task.notes)
    assert any("--fewshot was not used" in note for note in task.notes)


def test_chat_examples_are_turns_or_one_message(small_data):
    turns = load_task("gsm8k", **small_data, chat=True)
    assert [m["role"] for m in turns.questions[0].messages] == ["user", "assistant"] * 5 + ["user"]
    assert turns.questions[0].prompt is None
    one = load_task("gsm8k", **small_data, chat=True, fewshot_as_multiturn=False)
    assert [m["role"] for m in one.questions[0].messages] == ["user"]


def test_three_scores_disagree_where_text_and_value_differ(task):
    question = task.questions[0]
    assert question.expected == "10"
    by_value = task.score(question, "#### 10.00")
    assert (by_value.strict, by_value.flexible, by_value.numeric) == (False, False, True)
    second = task.score(question, "#### 10\n\nThat took 2 steps")
    assert (second.strict, second.flexible, second.numeric) == (True, False, True)
    nothing = task.score(question, "I do not know")
    assert (nothing.extracted_strict, nothing.extracted_flexible, nothing.extracted_numeric) == (
        "[invalid]",
        "[invalid]",
        None,
    )


def test_a_few_shot_row_that_is_a_question_is_refused(small_data, tmp_path):
    leak = write(tmp_path / "leak.jsonl", [row(f"other {i}") for i in range(9)])
    with leak.open("a") as file:
        file.write(small_data["dataset"].read_text().splitlines()[3] + "\n")
    with pytest.raises(UsageError, match=r"1 of 10 few-shot rows of leak\.jsonl .*row 9 is question 3"):
        load_task("gsm8k", dataset=small_data["dataset"], fewshot=leak)
    with pytest.raises(UsageError, match="12 of 12 few-shot rows"):
        load_task("gsm8k", dataset=small_data["dataset"], fewshot=small_data["dataset"])


def test_a_task_that_draws_from_its_questions_leaves_out_the_one_it_asks(small_data):
    task = load_task("gsm8k_platinum", dataset=small_data["dataset"])
    assert all(q.prompt.count(q.question) == 1 for q in task.questions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "holds no questions"),
        (b"question,answer\n1,2\n", "line 1 is not JSON"),
        (b'{"question": "a", "answer": "b"}\n[1]\n', "line 2 must be a JSON object, got list"),
        (b'{"question": "a", "answer": "\xff"}\n', "is not UTF-8"),
        (b'{"text": "a"}\n', "question 0 of bad.jsonl cannot be built"),
    ],
)
def test_a_bad_data_file_is_one_clear_line(small_data, tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_task("gsm8k", dataset=path, fewshot=small_data["fewshot"])
    assert "\n" not in str(caught.value)


def test_bad_usage_is_named(small_data, tmp_path):
    with pytest.raises(UsageError, match=r"did you mean .gsm8k_cot"):
        load_task("gsm8k_cott", **small_data)
    with pytest.raises(UsageError, match="no such file"):
        load_task(str(tmp_path / "none.yaml"), **small_data)
    with pytest.raises(UsageError, match=r"pass --fewshot FILE\.jsonl too"):
        load_task("gsm8k", dataset=small_data["dataset"])
    with pytest.raises(UsageError, match="must not be negative, got -1"):
        load_task("gsm8k", **small_data, num_fewshot=-1)
    few = write(tmp_path / "few.jsonl", [row("a"), row("b")])
    with pytest.raises(UsageError, match=r"5 examples from few\.jsonl"):
        load_task("gsm8k", dataset=small_data["dataset"], fewshot=few)


def test_a_task_file_of_ones_own_with_data_beside_it(tmp_path):
    write(tmp_path / "asked.jsonl", [row("one?", "#### 1"), row("two?", "#### 2")])
    write(tmp_path / "shown.jsonl", [row("three?", "#### 3")])
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: asked.jsonl, train: shown.jsonl}}\n"
        "test_split: test\nfewshot_split: train\nnum_fewshot: 1\noutput_type: generate_until\n"
        'doc_to_text: "Q: {{question}}\\nA:"\ndoc_to_target: "{{answer}}"\ngeneration_kwargs: {until: ["Q:"]}\n'
        "metric_list: [{metric: exact_match, regexes_to_ignore: [',', '(?s).*#### ']}]\n"
        "filter_list: [{name: strict-match, filter: [{function: regex, regex_pattern: '#### (-?[0-9]+)'}, {function: take_first}]}]\n"
    )
    task = load_task(str(yaml))
    assert [q.prompt for q in task.questions] == [
        "Q: three?\nA: #### 3\n\nQ: one?\nA:",
        "Q: three?\nA: #### 3\n\nQ: two?\nA:",
    ]
    scores = task.score(task.questions[1], "so #### 2")
    assert (scores.strict, scores.flexible, scores.numeric) == (True, True, True)
    yaml.write_text(yaml.read_text() + "process_docs: !function missing.process\n")
    with pytest.raises(UsageError, match="missing"):
        load_task(str(yaml))
    yaml.write_text("task: [a, b]\n")
    with pytest.raises(UsageError, match="is not one lm-eval task"):
        load_task(str(yaml))


def test_without_network_the_error_says_how_to_get_the_data(monkeypatch):
    import builtins

    real = builtins.__import__

    def no_datasets(name, *rest, **named):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_datasets)
    with pytest.raises(UsageError, match=r"test.jsonl .*--dataset test.jsonl --fewshot train.jsonl"):
        load_task("gsm8k")


def test_loading_and_scoring_import_neither_torch_nor_datasets(small_data):
    code = (
        "import sys; from pathlib import Path; from harness.gsm8k.task import load_task\n"
        f"t = load_task('gsm8k', dataset=Path({str(small_data['dataset'])!r}), fewshot=Path({str(small_data['fewshot'])!r}))\n"
        "t.score(t.questions[0], '#### 1')\n"
        "print([m for m in ('torch', 'datasets', 'pandas', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Tasks beside GSM8K: found by name among lm-eval's files, with functions of their own, in groups, or refused with the reason."""

from __future__ import annotations

import importlib.util
import json

import pytest

from harness.gsm8k.task import load_task, reads_hub
from harness.gsm8k.task_files import find_task
from harness.verdict import UsageError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval")

FUNCTIONS = """
def double(rows):
    return rows.filter(lambda row: row["half"] > 0).map(lambda row: {**row, "gold": str(2 * row["half"])})

def judge(doc, results):
    return {"exact_match": int(doc["gold"] in results[0]), "other": 0.5}

def half_right(doc, results):
    return {"exact_match": 0.5}
"""
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
{docs}
process_results: !function mine.judge
doc_to_text: "Twice {{{{half}}}}?"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: exact_match}}, {{metric: other}}]
generation_kwargs: {{until: ["Twice"], temperature: {temperature}}}
"""


@pytest.fixture
def write(tmp_path):
    """Write a task with functions of its own; returns its file."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)

    def make(name, rows=(1, 3), temperature=0.0, docs="", **changes):
        lines = [json.dumps({"half": half, "gold": str(2 * half)}) for half in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        text = YAML.format(name=name, temperature=temperature, docs=docs)
        for old, new in changes.items():
            text = text.replace(f"{old}:", f"{new}\n#")
        (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{name}.yaml"

    return make


def test_a_task_judges_its_answers_itself(write):
    task = load_task(str(write("twice")))
    assert [(q.index, q.prompt, q.expected) for q in task.questions] == [
        (0, "Twice 1?", "2"),
        (1, "Twice 3?", "6"),
    ]
    right = task.score(task.questions[1], "It is 16.")
    assert (right.strict, right.flexible, right.numeric) == (True, True, False), "by value it is 16"
    assert not task.score(task.questions[0], "It is 6.").strict


DOCS = "process_docs: !function mine.double"


@pytest.mark.long  # it imports datasets, a second
def test_a_task_prepares_its_rows_itself(write, tmp_path):
    task = load_task(str(write("twice", rows=(1, -2, 3), docs=DOCS)))
    assert [(q.index, q.prompt, q.expected) for q in task.questions] == [
        (0, "Twice 1?", "2"),
        (1, "Twice 3?", "6"),
    ]
    assert task.hashes["data"] == load_task(str(write("as_read", rows=(1, -2, 3)))).hashes["data"]
    with pytest.raises(UsageError, match=r"leaves no row of none\.jsonl"):
        load_task(str(write("none", rows=(-1,), docs=DOCS)))
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "a"}\n')
    with pytest.raises(UsageError, match=r"other\.jsonl, whose columns are question \(KeyError"):
        load_task(str(write("columns", docs=DOCS)), dataset=other)


def test_a_group_is_one_task_with_the_questions_of_all(write, small, run_here, tmp_path):
    write("one")
    write("two", rows=(5, 7))
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    task = load_task(str(tmp_path / "both.yaml"))
    assert [(q.index, q.prompt) for q in task.questions] == list(
        enumerate(["Twice 1?", "Twice 3?", "Twice 5?", "Twice 7?"])
    )
    assert [task.score(q, "#### 10").strict for q in task.questions] == [False, False, True, False]
    assert task.hashes["prompts"] not in {
        load_task(str(tmp_path / f"{n}.yaml")).hashes["prompts"] for n in ("one", "two")
    }
    server = small(lambda body, number: {"text": str(2 * int(body["prompt"].split()[1][:-1]))})
    stage = run_here(server.url, task=str(tmp_path / "both.yaml"), dataset=None, fewshot=None)
    assert (stage["correct_strict"], stage["questions"], stage["task"]["name"]) == (4, 4, "both")
    assert [s["index"] for s in stage["samples"]] == [0, 1, 2, 3]


def test_a_group_of_unlike_tasks_is_refused(write, tmp_path):
    write("one")
    write("two", temperature=0.5)
    (tmp_path / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    with pytest.raises(UsageError, match="two and one generate with different settings"):
        load_task(str(tmp_path / "both.yaml"))
    (tmp_path / "both.yaml").write_text("group: both\ntask: [{task: one}]\n")
    with pytest.raises(UsageError, match="holds more than names of tasks"):
        load_task(str(tmp_path / "both.yaml"))


def test_what_cannot_be_judged_is_refused_with_the_reason(write):
    with pytest.raises(
        UsageError, match=r"its process_results gives other, and harness gsm8k judges exact_match"
    ):
        load_task(str(write("metric", metric_list="metric_list: [{metric: other}]")))
    halves = load_task(str(write("halves", process_results="process_results: !function mine.half_right")))
    with pytest.raises(UsageError, match=r"must give exact_match as 0 or 1, got \{'exact_match': 0.5\}"):
        halves.score(halves.questions[0], "")
    with pytest.raises(UsageError, match=r"uses doc_to_choice \(answer choices\)"):
        load_task(str(write("choices", docs='doc_to_choice: ["a", "b"]')))
    with pytest.raises(UsageError, match="output_type must be generate_until, got multiple_choice"):
        load_task("hellaswag")
    with pytest.raises(UsageError, match="must be scored by exact_match"):
        load_task(
            str(write("bleu", process_results="description: ''", metric_list="metric_list: [{metric: bleu}]"))
        )
    with pytest.raises(UsageError, match=r"task key: .* unexpected keyword argument 'colour'"):
        load_task(str(write("key", docs="colour: red")))


def test_any_task_of_lm_eval_is_found_by_its_name():
    assert find_task("gsm_plus").name == "gsm_plus.yaml"
    assert find_task("hendrycks_math_algebra").name == "hendrycks_math_algebra.yaml"
    assert find_task("minerva_math").name == "minerva_math.yaml"
    for name in ("no_such_task", "gsm8k.*", "../gsm8k"):
        with pytest.raises(UsageError, match="any other task of lm-eval"):
            find_task(name)


def test_who_asks_the_hub_is_known_before_anything_is_asked(write, small_data):
    assert reads_hub("gsm8k", None)
    assert not reads_hub("gsm8k", small_data["dataset"])
    assert not reads_hub("gsm_canary", None)
    assert not reads_hub(str(write("local")), None)

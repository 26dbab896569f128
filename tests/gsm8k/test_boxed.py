r"""The task gsm8k_boxed: what counts as the number in the last \boxed{}, and the same prompts and scores as sgl-eval's.

The comparison runs where `sgl_eval` 0.1.3 and math-verify are installed; nothing of theirs is kept here.
"""

from __future__ import annotations

import asyncio
import json

import pytest
import yaml

from harness.gsm8k.boxed import boxed_number, last_boxed
from harness.gsm8k.task import load_task
from harness.verdict import UsageError

# What stands in the box, and whether it is 1080.
RIGHT = [
    "1080", " 1080 ", "1080.", "1080.0", "01080", "1,080", "1{,}080", "1 080", "\\$1080", "$1080", "\\$1,080.00", "\\$ 1080",
    "1080\\%", "1080\\text{ dollars}", "1080 \\text{ apples}", "\\text{1080}", "\\textbf{1080}", "\\mathrm{1080}",
    "1080 hours", "1080 km", "1080\\ \\text{hours}", "1080 \\mathrm{cm}", "1080\\text{cm}^2", "1080^{\\circ}", "1080\\,",
    "1080\\!", "1080\\\\", "\\ 1080", "\\frac{2160}{2}", "\\dfrac{2160}{2}", "2160/2", "x=1080", "x = 1080", "108 \\times 10",
    "108\\cdot 10", "1000+80", "1100-20", "10800\\div 10", "--1080", "(1080)", "[1080]", "\\{1080\\}", "{1080}",
    "\\boxed{1080}", "3 \\times 360 = 1080", "1080\\;\\text{km}", "\\(1080\\)", "\\left(1080\\right)", "(54)*(20)",
]  # fmt: skip
WRONG = [
    "1081", "-1080", "10,80", "1,08", "1.080", "1080 = x", "1080, 1081", "1080 dollars", "1080:00", "", "a", "one thousand",
    "1080!", "1080^2", "about 1080", "\\approx 1080", "1080e0", "1,080,000", "1080 \\text{ or } 1081", "3 \\frac{1}{2}",
    "1080\\text{, since }2+2=4", "1/0", "(" * 300, "1080.0.0", "5(216", "1\\,080",
    "\\text{1,080}", "\\mathbf{1{,}080}", "(1,080)", "\\frac{2,160}{2}",
]  # fmt: skip
# Right for sgl-eval alone (roots, powers, bases, two units) or here alone: not what a model answers to these questions.
DIFFERENT = [
    "\\sqrt{1166400}",
    "1.08 \\times 10^3",
    "1080_{10}",
    "1080\\text{ dollars and }5\\text{ cents}",
    "1080{.}0",
]


def answer(content):
    return f"Let us see: \\boxed{{7}}, no.\nThe answer is \\boxed{{{content}}}."


def test_a_number_in_the_box_is_read_in_every_form_that_models_write():
    assert {text: boxed_number(answer(text)) for text in RIGHT} == dict.fromkeys(RIGHT, "1080")
    assert [text for text in WRONG if boxed_number(answer(text)) == "1080"] == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("\\boxed{18} or \\boxed{19}", "19"),
        ("\\boxed{a{18}}", "a{18}"),
        ("\\boxed{-10}", "-10"),
        ("\\boxed{\u221210}", "-10"),
        ("\\boxed{0.50}", "0.5"),
        ("\\boxed{.25}", "0.25"),
        ("\\boxed{\\frac{1}{3}}", "1/3"),
        ("\\boxed{\\frac{-1}{4}}", "-0.25"),
        ("\\boxed{0}", "0"),
        ("\\boxed{18", "[invalid]"),
        ("\\boxed 18", "[invalid]"),
        ("#### 18", "[invalid]"),
        ("", "[invalid]"),
    ],
)
def test_the_last_box_counts_and_numbers_have_one_form(text, number):
    assert boxed_number(text) == number
    assert last_boxed([[text]], [{}]) == [[number]]


def test_the_task_asks_one_message_and_scores_the_box(small_data):
    task = load_task("gsm8k_boxed", dataset=small_data["dataset"], chat=True)
    question = task.questions[1]
    assert [m["role"] for m in question.messages] == ["user"]
    assert (task.stop, task.num_fewshot, question.expected) == ((), 0, "15150")
    scores = task.score(question, "3 \\times 5,050 = \\boxed{\\$15,150}$.")
    assert (scores.strict, scores.flexible, scores.numeric) == (True, True, True)
    assert task.score(question, "\\boxed{15{,}150}").strict
    assert not task.score(question, "#### 15,150").strict
    thinking = load_task("gsm8k_boxed_reasoning", dataset=small_data["dataset"], chat=True)
    assert thinking.hashes["prompts"] == task.hashes["prompts"]
    assert (task.generation["max_gen_toks"], thinking.generation["max_gen_toks"]) == (2048, 32768)


def test_a_reasoning_model_is_judged_by_its_box(small, run_here):
    from harness.gsm8k.reasoning import Reasoning

    def ill(body, number):
        question = body["messages"][-1]["content"].rpartition("\n\n")[2]
        gold = server.answers[question].rpartition("#### ")[2]
        return {"text": f"<think>Is it \\boxed{{1}}?</think>It is $\\boxed{{{gold}}}$."}

    server = small(ill)
    stage = run_here(
        server.url,
        task="gsm8k_boxed_reasoning",
        chat=True,
        fewshot=None,
        reasoning=Reasoning.STRIP,
        questions=16,
    )
    assert (stage["correct_strict"], stage["correct_flexible"]) == (16, 16)
    assert server.bodies[0]["max_tokens"] == 32768
    assert "stop" not in server.bodies[0]


@pytest.fixture
def grader():
    """sgl-eval's grader: from an answer and a gold number to whether it is right."""
    pytest.importorskip("math_verify", reason="needs sgl-eval 0.1.3 and math-verify")
    module = pytest.importorskip(
        "sgl_eval._vendored.nemo_skills.evaluator.math", reason="needs sgl-eval 0.1.3"
    )
    evaluator = module.MathEvaluator(config={})

    def grade(text, gold):
        point = {"generation": text, "expected_answer": gold}
        return bool(asyncio.run(evaluator.eval_single(point))["symbolic_correct"])

    return grade


@pytest.mark.filterwarnings("ignore")  # of its own dependencies
def test_scores_are_those_of_sgl_eval(grader, small_data, awkward_answers):
    for text in [*RIGHT, *WRONG]:
        assert grader(answer(text), 1080) == (boxed_number(answer(text)) == "1080"), text
    assert all(grader(answer(text), 1080) != (boxed_number(answer(text)) == "1080") for text in DIFFERENT)
    task = load_task("gsm8k_boxed", dataset=small_data["dataset"], chat=True)
    for question in task.questions:
        gold = int(question.expected)
        for text in awkward_answers(f"\\boxed{{{gold}}}"):
            assert grader(text, gold) == task.score(question, text).strict, text


@pytest.mark.filterwarnings("ignore")
def test_prompts_are_those_of_sgl_eval(small_data):
    package = pytest.importorskip("sgl_eval", reason="needs sgl-eval 0.1.3")
    stated = yaml.safe_load((package.VENDORED_NS_ROOT / "prompts" / "math.yaml").read_text())["user"]
    task = load_task("gsm8k_boxed", dataset=small_data["dataset"], chat=True)
    for line, question in zip(small_data["dataset"].read_text().splitlines(), task.questions, strict=True):
        theirs = stated.format(examples="", problem=json.loads(line)["question"])
        assert question.messages == [{"role": "user", "content": theirs}]


def test_a_group_takes_no_file(small_data):
    with pytest.raises(UsageError, match="minerva_math is a group of 7"):
        load_task("minerva_math", dataset=small_data["dataset"])

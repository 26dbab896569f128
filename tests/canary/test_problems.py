"""The canary's word problems: right arithmetic, right English, the same everywhere, and no test problem in training."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from harness.canary.problems import (
    FAMILIES,
    UNSEEN_FAMILIES,
    generate,
    held_out_keys,
    key_of,
    shipped,
    training_problems,
)
from harness.canary.problems.families import template_ids
from harness.canary.problems.generate import TEST, UNSEEN
from harness.canary.problems.story import Story
from harness.canary.problems.vocabulary import PEOPLE
from harness.gsm8k.task import load_task

ROOT = Path(__file__).parents[2]
MAX_TOKENS = 192
STEP = re.compile(
    r"^(?P<said>[^<>=]*?) = \$?<<(?P<expression>[\d+*/-]+)=(?P<result>\d+)>>(?P<shown>\d+)[^<>=\d]*\.$"
)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sample():
    """Every template about 40 times, those never trained on included."""
    return list(generate(4, 6200, families=(*FAMILIES, *UNSEEN_FAMILIES)))


def value(expression):
    """Work out a whole-number expression from left to right, without the generator's own arithmetic."""
    first, *rest = re.findall(r"\d+|[+*/-]", expression)
    result = int(first)
    for operator, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
        if operator == "/":
            assert result % number == 0, f"{expression} leaves a remainder"
            result //= number
        else:
            result = {"+": result + number, "-": result - number, "*": result * number}[operator]
    return result


def assert_answer_is_right(question, answer):
    *steps, last = answer.split("\n")
    assert 1 <= len(steps) <= 6, answer
    known = set(re.findall(r"\d+", question))
    for step in steps:
        found = STEP.match(step)
        assert found, f"{step!r} is not one worked step"
        expression, result = found["expression"], found["result"]
        assert found["said"].endswith(re.sub(r"([+*/-])", r" \1 ", expression)), (
            f"{step!r} says something else"
        )
        assert value(expression) == int(result) == int(found["shown"]), step
        assert 2 <= int(result) <= 9999, step
        # Each number comes from the question, an earlier step, or what everybody knows: a dozen, legs, an hour, a
        # percentage, the parts of a fraction or "twice", how many days were averaged.
        for number in re.findall(r"\d+", expression):
            assert number in known or int(number) <= 12 or number in {"60", "100"}, (
                f"{number} of {step!r} is from nowhere"
            )
        known.add(result)
    assert last == f"#### {result}", answer


def test_the_arithmetic_has_a_test_that_can_fail():
    question = "Anna buys 4 boxes of 12 eggs. How many eggs does she buy?"
    assert_answer_is_right(question, "Anna buys 4 * 12 = <<4*12=48>>48 eggs.\n#### 48")
    for wrong in (
        "Anna buys 4 * 12 = <<4*12=49>>49 eggs.\n#### 49",
        "Anna buys 4 * 12 = <<4*12=48>>48 eggs.\n#### 49",
        "Anna buys 4 * 12 = <<4*12=48>>84 eggs.\n#### 48",
        "Anna buys 12 * 4 = <<4*12=48>>48 eggs.\n#### 48",
        "Anna buys 4 * 77 = <<4*77=308>>308 eggs.\n#### 308",
        "Anna gives 12 / 8 = <<12/8=1>>1 eggs.\n#### 1",
    ):
        with pytest.raises(AssertionError):
            assert_answer_is_right(question, wrong)


def test_every_annotation_is_right_and_the_last_step_is_the_answer(sample):
    for problem in sample:
        assert_answer_is_right(problem.question, problem.answer)
        assert problem.steps == problem.answer.count("\n")


def test_there_are_as_many_templates_families_and_steps_as_promised(sample):
    assert len(FAMILIES) >= 12
    assert len(UNSEEN_FAMILIES) >= 3
    assert len({*FAMILIES, *UNSEEN_FAMILIES}) == len(FAMILIES) + len(UNSEEN_FAMILIES)
    assert len(template_ids(FAMILIES)) >= 80
    assert {p.template for p in sample} == {*template_ids(FAMILIES), *template_ids(UNSEEN_FAMILIES)}
    assert {p.steps for p in sample} == {1, 2, 3, 4, 5, 6}
    assert all(p.template.startswith(f"{p.family}/") for p in sample)
    operators = Counter(re.findall(r" ([+*/-]) ", "\n".join(p.answer for p in sample)))
    assert min(operators[o] for o in "+-*/") > len(sample) / 10


def test_every_template_has_several_wordings(monkeypatch):
    wordings = defaultdict(set)

    def ask(self, *phrasings, aside=""):
        assert len(set(phrasings)) == len(phrasings)
        wordings[sys._getframe(1).f_code.co_qualname, sys._getframe(1).f_code.co_filename].add(len(phrasings))

    monkeypatch.setattr(Story, "ask", ask)
    templates = template_ids((*FAMILIES, *UNSEEN_FAMILIES))
    list(generate(2, len(templates), families=(*FAMILIES, *UNSEEN_FAMILIES)))
    assert len(wordings) == len(templates)
    assert {min(found) >= 2 for found in wordings.values()} == {True}


def test_every_template_has_many_numbers():
    """So many that leaving out the problems of the test set costs training nothing."""
    numbers = defaultdict(set)
    for problem in generate(11, 31_000, families=(*FAMILIES, *UNSEEN_FAMILIES)):
        numbers[problem.template].add(problem.numbers)
    assert min((len(found), name) for name, found in numbers.items()) >= (80, "")


def test_questions_and_answers_are_short_enough_for_a_small_model(sample):
    for problem in sample:
        assert 12 <= len(problem.question.split()) <= 75, problem.question
        # Counted as a tokenizer of digits and words does that gives a space before a digit a token of its own.
        tokens = re.findall(r" ?[A-Za-z']+|\d|<<|>>|\n| (?=\d)| ?[^\w\s]", problem.answer)
        assert len(tokens) < MAX_TOKENS - 10, problem.answer


def test_multiplications_can_be_done_by_heart(sample):
    for problem in sample:
        for a, b in re.findall(r"<<(\d+)\*(\d+)=", problem.answer):
            assert min(int(a), int(b)) <= 12, problem.answer


def test_some_questions_hold_a_number_that_is_not_used(sample):
    def unused(problem):
        return set(re.findall(r"\d+", problem.question)) - set(re.findall(r"\d+", problem.answer))

    share = sum(bool(unused(p)) for p in sample) / len(sample)
    assert 0.1 < share < 0.4


def test_the_english_is_right_where_a_program_can_see_it(sample):
    names = {person.name: person for person in PEOPLE}
    for problem in sample:
        for text in (problem.question, problem.answer.replace("\n", " ")):
            assert "  " not in text, text
            assert not re.search(r"[{}@\[\]]|None|Noun\(|Person\(| [.,?]", text), text
            assert not re.search(r"(?<![\d*/+-])(?<![*/+-] )\b1 [a-z]+s\b", text), text
            assert not re.search(
                r"\b[Aa] \$?(?:[aeio]|8|1[18]\b)|\b[Aa]n \$?(?:[bcdfgjklmnpqrstvwxyz]|[2-7]|1[02-79]\b)", text
            ), text
            assert not re.search(r"[.?] [a-z]", text), text
            assert text[0].isupper() or text[0].isdigit(), text
        assert problem.question.endswith("?"), problem.question
        assert problem.question.count("?") == 1, problem.question
        here = {names[word] for word in re.findall(r"[A-Z][a-z]+", problem.question) if word in names}
        for pronoun in re.findall(r"\b(he|she|him|his|her)\b", problem.question.lower()):
            owners = {"he", "him", "his"} if pronoun in {"he", "him", "his"} else {"she", "her"}
            assert any(person.he in owners for person in here), problem.question


def test_the_same_seed_gives_the_same_problems_in_every_process():
    code = (
        "from harness.canary.problems import *; import hashlib; "
        "print(hashlib.sha256(repr([*training_problems(7, 500), *generate(7, 99, families=UNSEEN_FAMILIES)])"
        ".encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1
    assert list(generate(7, 50)) == list(generate(7, 50))
    assert list(generate(7, 50)) != list(generate(8, 50))


def test_the_shipped_files_are_what_the_generator_writes():
    assert shipped.outdated() == [], "run python -m harness.canary.problems"
    test, unseen = rows(TEST), rows(UNSEEN)
    assert (len(test), len(unseen)) == (500, 100)
    assert {row["family"] for row in test} == set(FAMILIES)
    assert {row["template"] for row in test} == set(template_ids(FAMILIES))
    assert {row["family"] for row in unseen} == set(UNSEEN_FAMILIES)
    for row in (*test, *unseen):
        assert_answer_is_right(row["question"], row["answer"])
    keys = [key_of(row["template"], tuple(row["numbers"])) for row in (*test, *unseen)]
    assert len(set(keys)) == 600
    assert set(keys) == held_out_keys()


def test_the_command_says_which_file_is_outdated(monkeypatch, tmp_path):
    for name in ("TEST", "UNSEEN"):
        monkeypatch.setattr(shipped, name, tmp_path / f"{name}.jsonl")
    assert shipped.outdated() == [tmp_path / "TEST.jsonl", tmp_path / "UNSEEN.jsonl"]
    shipped.write()
    assert (tmp_path / "TEST.jsonl").read_text() == TEST.read_text()
    (tmp_path / "TEST.jsonl").write_text("{}\n")
    assert shipped.outdated() == [tmp_path / "TEST.jsonl"]


def test_no_shipped_problem_is_ever_trained_on():
    held_out = held_out_keys()
    training = list(training_problems(1, 30_000))
    assert not {problem.key() for problem in training} & held_out
    assert not {problem.question for problem in training} & {row["question"] for row in rows(TEST)}
    # Without the exclusion many would be: the numbers of a problem are few, so this test can fail.
    assert {problem.key() for problem in generate(1, 30_000)} & held_out


def test_a_problem_with_another_distractor_is_the_same_problem():
    by_key = defaultdict(set)
    for problem in generate(3, 3000, families=["percentages"]):
        by_key[problem.key()].add(problem.question)
    assert any(len(questions) > 1 for questions in by_key.values())


def test_excluded_keys_are_not_drawn_and_unknown_families_are_named():
    first = next(generate(5, 1, families=["ages"]))
    assert all(p.key() != first.key() for p in generate(5, 500, families=["ages"], exclude={first.key()}))
    with pytest.raises(ValueError, match=r"families must be among shopping, .*; got shoping"):
        generate(1, 1, families=["shoping"])


@pytest.mark.parametrize(
    ("name", "count", "path"), [("gsm_canary", 500, TEST), ("gsm_canary_unseen", 100, UNSEEN)]
)
def test_the_task_needs_no_network_and_scores_answers(name, count, path):
    task = load_task(name)
    assert (task.name, len(task.questions), task.num_fewshot) == (name, count, 0)
    assert task.generation["max_gen_toks"] == MAX_TOKENS
    assert task.generation["do_sample"] is False
    assert task.stop[:2] == ("\n\n", "Question:")
    for question, row in zip(task.questions, rows(path), strict=True):
        assert question.prompt == f"Question: {row['question']}\nAnswer:"
        right, wrong = (
            task.score(question, " " + row["answer"]),
            task.score(question, " " + row["answer"] + "7"),
        )
        assert (right.strict, right.flexible, right.numeric) == (True, True, True), row
        assert (wrong.strict, wrong.flexible, wrong.numeric) == (False, False, False), row


def test_the_task_is_lm_evals_gsm8k_but_for_shots_and_data():
    from harness.gsm8k.task_files import find_task, load_config

    ours, theirs = load_config(find_task("gsm_canary")), load_config(find_task("gsm8k"))
    for key in ("doc_to_text", "doc_to_target", "metric_list", "filter_list"):
        assert ours[key] == theirs[key], key

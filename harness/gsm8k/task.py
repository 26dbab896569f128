"""A task: its questions with their prompts, and the scores of an answer. What lm-eval would ask and say, without torch."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from harness.gsm8k import data, lm_eval_task, task_files, task_rows
from harness.gsm8k.data import Row, Rows
from harness.gsm8k.scoring import JoinedScorer, OwnScorer, Scorer, Scores
from harness.verdict import UsageError

SENT_STOPS = 4
"""Servers refuse more stop strings than this (the OpenAI interface allows 4); an 18-string task once scored 0.0."""


@dataclass(frozen=True)
class Question:
    """One question. `index` is its place in the data file; `prompt` (completions) or `messages` (chat) is what is sent.

    `expected` is the gold answer as lm-eval's metric compares it ("18"), without the worked solution; `reference` is all of
    it, as it follows the prompt.
    """

    index: int
    question: str
    expected: str
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    reference: str = ""


@dataclass
class Task:
    """A loaded task.

    `stop` are the stop strings to send: the first four, which are also those that lm-eval's chat client sends. `cut`
    applies the others; `score` does so by itself. `generation` are the task's generation settings as lm-eval has them
    (`until` included). `hashes`: `data` and `fewshot` over the parsed rows (equal for a file and the hub), `prompts`
    over everything that is sent, `task` over the merged YAML, `data_file` and `fewshot_file` over the bytes of files. `answers_fit`: the task vouches that every
    right answer is shorter than its `max_gen_toks`, so a model whose answers are cut there is broken, not cut short.
    """

    name: str
    version: str
    questions: list[Question]
    stop: tuple[str, ...]
    unsent_stop: tuple[str, ...]
    generation: dict[str, Any]
    hashes: dict[str, str]
    sources: dict[str, str]
    num_fewshot: int
    scorer: Scorer = field(repr=False)
    notes: tuple[str, ...] = ()
    answers_fit: bool = False

    def cut(self, text: str) -> str:
        """Return the text up to the first stop string that the server was not told about."""
        ends = [at for stop in self.unsent_stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def score(self, question: Question, text: str) -> Scores:
        """Score one answer with the task's own filters and metric, and by value."""
        return self.scorer.score(question.index, question.expected, self.cut(text))


def reads_hub(name: str, dataset: Path | None) -> bool:
    """Return whether loading a task asks the Hugging Face hub: no file is given, and the task names none.

    Raises:
        UsageError: unknown task.
    """
    if dataset is not None:
        return False
    path = task_files.find_task(name)
    config = task_files.read_yaml(path)
    return any(
        not task_rows.is_local(task_files.read_yaml(member))
        for member in task_files.members(path, config) or [path]
    )


def load_task(
    name: str,
    *,
    dataset: Path | None = None,
    fewshot: Path | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    fewshot_as_multiturn: bool = True,
    system_instruction: str | None = None,
) -> Task:
    """Load a task by name or YAML path, with its questions from `dataset` and its few-shot rows from `fewshot`.

    Without files the rows come from where the YAML says: local JSON lines (`dataset_path: json`) or the hub. A group of
    tasks is one task with the questions of all.

    Raises:
        UsageError: unknown or unsupported task, data that cannot be had, or a few-shot example that is a question.
    """
    path = task_files.find_task(name)
    config = task_files.read_yaml(path)
    asked = partial(
        _load,
        dataset=dataset,
        fewshot=fewshot,
        num_fewshot=num_fewshot,
        chat=chat,
        multiturn=fewshot_as_multiturn,
        system_instruction=system_instruction,
    )
    parts = task_files.members(path, config)
    if not parts:
        return asked(path, config)
    if dataset is not None:
        raise UsageError(
            f"--dataset is the data of one task, and {config['group']} is a group of {len(parts)}"
        )
    return _joined(str(config["group"]), [asked(part, task_files.read_yaml(part)) for part in parts])


def _load(
    path: Path,
    read: dict[str, Any],
    *,
    dataset: Path | None,
    fewshot: Path | None,
    num_fewshot: int | None,
    chat: bool,
    multiturn: bool,
    system_instruction: str | None,
) -> Task:
    """Load one task from its merged YAML."""
    stated = task_files.load_config(path, read)
    from lm_eval.config.task import TaskConfig

    try:
        config = TaskConfig(**copy.deepcopy(stated))
    except TypeError as error:  # a key that lm-eval does not know either
        raise UsageError(f"task {stated['task']}: {error}") from None
    shots = num_fewshot if num_fewshot is not None else config.num_fewshot or 0
    if shots < 0:
        raise UsageError(f"--num-fewshot must not be negative, got {shots}")
    is_right = lm_eval_task.right_answers(config)
    questions = task_rows.question_rows(config, dataset, path)
    notes: list[str] = []
    pool = task_rows.fewshot_rows(
        config, questions, fewshot, shots, yaml_path=path, notes=notes, offline=dataset is not None
    )

    prompts = lm_eval_task.Prompts(config, frozenset(questions.rows[0]), pool.rows, shots, system_instruction)
    built, golds = _build(prompts, questions, pool, config, chat=chat, multiturn=multiturn)
    stop, unsent = _stop_strings(config)
    if unsent:
        notes.append(f"{len(unsent)} of {len(stop + unsent)} stop strings are applied here, not sent")
    return Task(
        name=config.task,
        version=str((config.metadata or {}).get("version", "")),
        questions=built,
        stop=stop,
        unsent_stop=unsent,
        generation=copy.deepcopy(config.generation_kwargs),
        hashes={
            "data": questions.digest,
            "data_file": questions.file_digest,
            "fewshot": pool.digest,
            "fewshot_file": pool.file_digest,
            "prompts": data.digest_of([q.messages if chat else q.prompt for q in built]),
            "task": data.digest_of([stated]),
        },
        sources={"data": questions.known_as or questions.source, "fewshot": pool.known_as or pool.source},
        num_fewshot=shots,
        scorer=OwnScorer(questions.rows, golds, lm_eval_task.filter_pipelines(config), is_right),
        notes=tuple(notes),
        answers_fit=(config.metadata or {}).get("answers_fit") is True,
    )


def _joined(name: str, parts: list[Task]) -> Task:
    """Return a group as one task, whose accuracy is lm-eval's weighted by size.

    Raises:
        UsageError: its tasks are asked with different settings.
    """
    first = parts[0]
    for part in parts:
        if (part.generation, part.num_fewshot) != (first.generation, first.num_fewshot):
            raise UsageError(
                f"group {name}: {part.name} and {first.name} generate with different settings; name one of them"
            )
    starts = [0, *accumulate(len(part.questions) for part in parts)][:-1]
    questions = [
        replace(question, index=start + question.index)
        for start, part in zip(starts, parts, strict=True)
        for question in part.questions
    ]
    return replace(
        first,
        name=name,
        version=", ".join(dict.fromkeys(part.version for part in parts)),
        questions=questions,
        hashes={key: data.digest_of([part.hashes[key] for part in parts]) for key in first.hashes},
        sources={key: "; ".join(dict.fromkeys(part.sources[key] for part in parts)) for key in first.sources},
        scorer=JoinedScorer(starts, [part.scorer for part in parts]),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        answers_fit=all(part.answers_fit for part in parts),
    )


def _stop_strings(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the stop strings to send, and those that are left to `Task.cut`."""
    until = config.generation_kwargs.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    return stops[:SENT_STOPS], stops[SENT_STOPS:]


def _build(
    prompts: lm_eval_task.Prompts, questions: Rows, pool: Rows, config: Any, *, chat: bool, multiturn: bool
) -> tuple[list[Question], list[str]]:
    """Build every question in file order, as lm-eval does: a subset of them keeps the prompts of the whole."""
    built: list[Question] = []
    golds: list[str] = []
    ignored = [re.compile(pattern) for pattern in _ignored(config)]
    try:
        texts = [prompts.text(row) for row in questions.rows]
        _refuse_leaks(prompts, questions, pool, texts)
        for index, row in enumerate(questions.rows):
            examples = prompts.examples(row)
            golds.append(prompts.target(row))
            expected = golds[-1]
            for pattern in ignored:
                expected = pattern.sub("", expected)
            question = str(row.get("question", texts[index]))
            reference = prompts.reference(golds[-1])
            if chat:
                messages = prompts.chat(row, examples, multiturn=multiturn)
                built.append(Question(index, question, expected, messages=messages, reference=reference))
            else:
                prompt = prompts.completion(row, examples)
                built.append(Question(index, question, expected, prompt=prompt, reference=reference))
    except UsageError:
        raise
    except Exception as error:  # a column that the template names is missing, or too few rows to draw from
        row_number = len(built)
        raise UsageError(
            f"task {config.task}: question {row_number} of {questions.source} cannot be built with "
            f"{prompts.num_fewshot} examples from {pool.source} ({type(error).__name__}: {error})"
        ) from error
    if config.process_results is None and golds[0].startswith("[") and golds[0].endswith("]"):
        raise UsageError(f"task {config.task}: answers that are lists are not supported")
    return built, golds


def _ignored(config: Any) -> list[str]:
    if config.process_results is not None:
        return []
    return list(lm_eval_task.exact_match_settings(config).get("regexes_to_ignore") or [])


def _refuse_leaks(prompts: lm_eval_task.Prompts, questions: Rows, pool: Rows, texts: list[str]) -> None:
    """Refuse a few-shot row that is a question: the prompt would hold the answer.

    Where a task draws from its questions themselves (gsm8k_platinum), lm-eval leaves out a question's own row instead.
    """
    if pool is questions or not pool.rows:
        return
    shots = prompts.config.fewshot_config
    by_column = all("question" in row for row in (*questions.rows, *pool.rows))

    def key(row: Row, text: str | None) -> str:
        said = (
            row["question"] if by_column else prompts.render(shots.doc_to_text, row) if text is None else text
        )
        return " ".join(str(said).split())

    asked = {key(row, texts[index]): index for index, row in enumerate(questions.rows)}
    found = ((number, asked.get(key(row, None))) for number, row in enumerate(pool.rows))
    leaks = [(number, index) for number, index in found if index is not None]
    if leaks:
        number, index = leaks[0]
        raise UsageError(
            f"{len(leaks)} of {len(pool.rows)} few-shot rows of {pool.source} are also questions of {questions.source} "
            f"(row {number} is question {index}): a prompt would hold its own answer"
        )

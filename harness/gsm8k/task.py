"""A task: its questions with their prompts, and the scores of an answer. What lm-eval would ask and say, without torch."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.gsm8k import data, lm_eval_task
from harness.gsm8k.data import Row, Rows
from harness.gsm8k.numeric import canonical, extract_number, same_number
from harness.verdict import UsageError

SENT_STOPS = 4
"""Servers refuse more stop strings than this (the OpenAI interface allows 4); an 18-string task once scored 0.0."""

STRICT, FLEXIBLE = "strict-match", "flexible-extract"
INVALID = "[invalid]"
"""What lm-eval's filters return when they find nothing. It is scored as any other text: as wrong."""


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


@dataclass(frozen=True)
class Scores:
    """One answer by lm-eval's two extractors and by value, with what each of them read."""

    strict: bool
    flexible: bool
    numeric: bool
    extracted_strict: str
    extracted_flexible: str
    extracted_numeric: str | None


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
    notes: tuple[str, ...] = ()
    answers_fit: bool = False
    _docs: list[Row] = field(default_factory=list, repr=False)
    _golds: list[str] = field(default_factory=list, repr=False)
    _pipelines: dict[str, Any] = field(default_factory=dict, repr=False)
    _metric: dict[str, Any] = field(default_factory=dict, repr=False)

    def cut(self, text: str) -> str:
        """Return the text up to the first stop string that the server was not told about."""
        ends = [at for stop in self.unsent_stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def score(self, question: Question, text: str) -> Scores:
        """Score one answer with the task's own filters and metric, and by value."""
        from lm_eval.api.metrics import exact_match_hf_evaluate

        text = self.cut(text)
        doc, gold = self._docs[question.index], self._golds[question.index]
        read = {name: extract(text, doc) for name, extract in self._pipelines.items()}
        names = list(read)
        strict = read.get(STRICT, read[names[0]])
        flexible = read.get(FLEXIBLE, read[names[-1]])
        right = {}
        for extracted in {strict, flexible}:
            found = exact_match_hf_evaluate(predictions=[extracted], references=[gold], **self._metric)
            right[extracted] = bool(found["exact_match"] == 1.0)
        number = extract_number(text)
        # A task whose answers are no numbers has no third opinion: it follows the second.
        numeric = same_number(number, question.expected) if canonical(question.expected) else right[flexible]
        return Scores(right[strict], right[flexible], numeric, strict, flexible, number)


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

    Without files the rows come from where the YAML says: local JSON lines (`dataset_path: json`) or the hub.

    Raises:
        UsageError: unknown or unsupported task, data that cannot be had, or a few-shot example that is a question.
    """
    path = lm_eval_task.find_task(name)
    stated = lm_eval_task.load_config(path)
    from lm_eval.config.task import TaskConfig

    config = TaskConfig(**copy.deepcopy(stated))
    shots = num_fewshot if num_fewshot is not None else config.num_fewshot or 0
    if shots < 0:
        raise UsageError(f"--num-fewshot must not be negative, got {shots}")
    questions = _question_rows(config, dataset, path)
    notes: list[str] = []
    pool = _fewshot_rows(
        config, questions, fewshot, shots, yaml_path=path, notes=notes, offline=dataset is not None
    )

    prompts = lm_eval_task.Prompts(config, frozenset(questions.rows[0]), pool.rows, shots, system_instruction)
    built, golds = _build(prompts, questions, pool, config, chat=chat, multiturn=fewshot_as_multiturn)
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
        notes=tuple(notes),
        answers_fit=(config.metadata or {}).get("answers_fit") is True,
        _docs=questions.rows,
        _golds=golds,
        _pipelines=lm_eval_task.filter_pipelines(config),
        _metric=lm_eval_task.exact_match_settings(config),
    )


def _question_rows(config: Any, dataset: Path | None, yaml_path: Path) -> Rows:
    """Read the questions from the file that was given, else from where the task says they are."""
    split = config.test_split or config.validation_split
    if split is None:
        raise UsageError(f"task {config.task}: names no test or validation split")
    return data.read_jsonl(dataset, "--dataset") if dataset else _stated_rows(config, split, yaml_path)


def _stop_strings(config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the stop strings to send, and those that are left to `Task.cut`."""
    until = config.generation_kwargs.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    return stops[:SENT_STOPS], stops[SENT_STOPS:]


def _stated_rows(config: Any, split: str, yaml_path: Path) -> Rows:
    """Read a split from where the task says it is. Files are looked for beside the YAML first, then as lm-eval does."""
    arguments = dict(config.dataset_kwargs or {})
    files = arguments.get("data_files")
    if config.dataset_path == "json" and files:
        stated = files.get(split) if isinstance(files, dict) else files
        if not isinstance(stated, str):
            raise UsageError(
                f"task {config.task}: data_files must name one file for the split {split!r}, got {stated!r}"
            )
        beside = yaml_path.parent / stated
        return data.read_jsonl(beside if beside.is_file() else Path(stated), f"task {config.task}:")
    return data.read_hub(config.dataset_path, config.dataset_name, split, arguments)


def _fewshot_rows(
    config: Any,
    questions: Rows,
    file: Path | None,
    shots: int,
    *,
    yaml_path: Path,
    notes: list[str],
    offline: bool,
) -> Rows:
    """Return the rows that few-shot examples are drawn from, as `ConfigurableTask.fewshot_docs` chooses them."""
    given = data.read_jsonl(file, "--fewshot") if file else None
    if shots == 0:
        return Rows([], "none", data.digest_of([]))
    stated = config.fewshot_config
    if stated.split is None and stated.samples is not None:
        samples = stated.samples() if callable(stated.samples) else stated.samples
        if given:
            notes.append(
                f"{config.task} has {len(samples)} fixed examples of its own; --fewshot was not used"
            )
        return Rows(list(samples), f"fixed examples of {config.task}", data.digest_of(samples))
    split = stated.split or config.training_split or config.validation_split or config.test_split
    if given:
        if split == config.test_split:
            notes.append(
                f"lm-eval draws the examples of {config.task} from its questions; here from {given.source}"
            )
        return given
    if split == config.test_split:
        return questions
    if offline and config.dataset_path != "json":
        raise UsageError(
            f"{config.task} draws its {shots} examples from the {split} split, and --dataset holds only the questions: "
            "pass --fewshot FILE.jsonl too"
        )
    return _stated_rows(config, split, yaml_path)


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
    if golds[0].startswith("[") and golds[0].endswith("]"):
        raise UsageError(f"task {config.task}: answers that are lists are not supported")
    return built, golds


def _ignored(config: Any) -> list[str]:
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

"""The rows of a task: its questions and what its few-shot examples are drawn from, as lm-eval chooses and prepares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.gsm8k import data
from harness.gsm8k.data import Rows
from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


def question_rows(config: Any, dataset: Path | None, yaml_path: Path) -> Rows:
    """Read the questions from the file that was given, else from where the task says they are."""
    split = config.test_split or config.validation_split
    if split is None:
        raise UsageError(f"task {config.task}: names no test or validation split")
    rows = data.read_jsonl(dataset, "--dataset") if dataset else _stated_rows(config, split, yaml_path)
    return _prepared(rows, config.process_docs, config.task)


def is_local(config: Any) -> bool:
    """Return whether a task states files of this machine, not a data set of the hub."""
    return config.get("dataset_path") == "json" and bool(
        (config.get("dataset_kwargs") or {}).get("data_files")
    )


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


def fewshot_rows(
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
    prepare = stated.process_docs if stated.split else config.process_docs
    split = stated.split or config.training_split or config.validation_split or config.test_split
    if given:
        if split == config.test_split:
            notes.append(
                f"lm-eval draws the examples of {config.task} from its questions; here from {given.source}"
            )
        return _prepared(given, prepare, config.task)
    if split == config.test_split:
        return questions
    if offline and config.dataset_path != "json":
        raise UsageError(
            f"{config.task} draws its {shots} examples from the {split} split, and --dataset holds only the questions: "
            "pass --fewshot FILE.jsonl too"
        )
    return _prepared(_stated_rows(config, split, yaml_path), prepare, config.task)


def _prepared(rows: Rows, prepare: Callable[..., Any] | None, task: str) -> Rows:
    """Return the rows as the task's own `process_docs` makes them. Their digest stays that of what was read.

    Raises:
        UsageError: the function does not take them; names the columns that there are.
    """
    if prepare is None:
        return rows
    import datasets  # what such a function takes

    datasets.disable_progress_bars()
    try:
        made = [dict(row) for row in prepare(datasets.Dataset.from_list(rows.rows))]
    except Exception as error:  # any that a function of a task raises
        columns = ", ".join(rows.rows[0])
        raise UsageError(
            f"task {task}: its process_docs does not take the rows of {rows.source}, whose columns are {columns} "
            f"({type(error).__name__}: {error})"
        ) from error
    if not made:
        raise UsageError(f"task {task}: its process_docs leaves no row of {rows.source}")
    return replace(rows, rows=made)

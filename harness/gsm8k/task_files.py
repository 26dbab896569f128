"""The YAML files of tasks: lm-eval's own, those shipped with the harness, and the user's, read by lm-eval's loader."""

from __future__ import annotations

import importlib.util
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from harness.extras import MissingExtraError
from harness.gsm8k.lazy import UNUSED, import_when_used
from harness.verdict import UsageError, unknown_name

OWN_TASKS = Path(__file__).parent / "tasks"
_NAMED = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
    "gsm8k_cot_llama": "gsm8k/gsm8k-cot-llama.yaml",
    "gsm8k_cot_zeroshot": "gsm8k/gsm8k-cot-zeroshot.yaml",
    "gsm8k_llama": "llama3/instruct/gsm8k/gsm8k.yaml",
    "gsm8k_platinum": "gsm8k_platinum/gsm8k-platinum.yaml",
    "gsm8k_platinum_cot": "gsm8k_platinum/gsm8k-platinum-cot.yaml",
    "gsm8k_platinum_cot_llama": "gsm8k_platinum/gsm8k-platinum-cot-llama.yaml",
    "gsm8k_platinum_cot_zeroshot": "gsm8k_platinum/gsm8k-platinum-cot-zeroshot.yaml",
    "gsm_plus": "gsm_plus/gsm_plus.yaml",
    "gsm_plus_mini": "gsm_plus/gsm_plus_mini.yaml",
    "minerva_math": "benchmarks/minerva_math.yaml",
}
"""Where the tasks are that are asked for most; any other is looked for in all of lm-eval's files, which takes a second."""
_UNSUPPORTED = {
    "class": "a Python class",
    "custom_dataset": "a function that makes its data",
    "doc_to_choice": "answer choices",
    "doc_to_image": "images",
    "doc_to_audio": "sound",
    "use_prompt": "prompts of another library",
}


def task_names() -> list[str]:
    """Return the names that are known without a search: GSM8K's and its neighbours', and those shipped with the harness."""
    return sorted({*_NAMED, *(path.stem for path in OWN_TASKS.glob("*.yaml"))})


def find_task(name: str) -> Path:
    """Return the YAML file of a task or group of tasks, given by name or by path.

    Raises:
        UsageError: no such task; names the closest ones.
        MissingExtraError: the extra `gsm8k`, whose lm-eval has the tasks, is not installed.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UsageError(f"--task {name}: no such file")
        return Path(name)
    own = OWN_TASKS / f"{name}.yaml"
    if name in task_names() and own.is_file():
        return own
    if name in _NAMED:
        return _package() / "tasks" / _NAMED[name]
    if re.fullmatch(r"[\w.,+-]+", name) and (found := _search(name)):
        return found
    raise unknown_name(
        "task", name, task_names(), also="any other task of lm-eval, the path of an lm-eval YAML file"
    )


def _search(name: str) -> Path | None:
    """Return the first of lm-eval's files that names this task or group; those that are called so are read first."""
    wanted = re.compile(
        rb"^(?:task|group):[ \t]*['\"]?" + re.escape(name).encode() + rb"['\"]?[ \t\r]*$", re.MULTILINE
    )

    def is_called_otherwise(path: Path) -> bool:
        return path.stem.replace("-", "_") != name.replace("-", "_")

    files = sorted(_files(_package() / "tasks"), key=is_called_otherwise)
    return next((path for path in files if wanted.search(path.read_bytes())), None)


@cache
def _files(folder: Path) -> tuple[Path, ...]:
    """Return all YAML files below a folder, in the order of their names."""
    return tuple(
        Path(place) / file
        for place, _, files in sorted(os.walk(folder))
        for file in sorted(files)
        if file.endswith((".yaml", ".yml"))
    )


def _package() -> Path:
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise MissingExtraError("a task", "gsm8k")
    import_when_used(*UNUSED)
    return Path(found.origin).parent


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the merged YAML of a task or group, read by lm-eval's own loader (`include`, `!function`).

    Raises:
        UsageError: it is no YAML, or what it includes or calls cannot be imported.
    """
    source = _package() / "tasks" / "_yaml_loader.py"
    spec = importlib.util.spec_from_file_location("lm_eval_yaml_loader", source)
    if spec is None or spec.loader is None:
        raise UsageError(f"this lm-eval has no {source.name}; install lm-eval>=0.4.13,<0.5")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    try:
        config: dict[str, Any] = loader.load_yaml(path)
    except Exception as error:  # YAML syntax, a missing include, a !function that cannot be imported
        first = " ".join(str(error).split())
        raise UsageError(f"--task {path}: {first:.300}") from error
    return config


def members(path: Path, config: dict[str, Any]) -> list[Path]:
    """Return the files of a group's tasks, none where the YAML is a task.

    Raises:
        UsageError: the group holds anything but tasks by name.
    """
    names = config.get("task")
    if "group" not in config or isinstance(names, str):
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise UsageError(f"group {config['group']} holds more than names of tasks: name one of its tasks")
    beside = (path.parent / f"{name}.yaml" for name in names)
    return [own if own.is_file() else find_task(name) for name, own in zip(names, beside, strict=True)]


def load_config(path: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the merged YAML of a task whose answers the harness can judge.

    Raises:
        UsageError: not a task file, or a task of a kind whose answers the harness cannot judge.
    """
    config = read_yaml(path) if config is None else config
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    if (
        not isinstance(config.get("task"), str)
        or "doc_to_text" not in config
        or "doc_to_target" not in config
    ):
        raise UsageError(
            f"--task {path}: is not one lm-eval task: task, doc_to_text and doc_to_target are needed"
        )
    name = config["task"]
    if config.get("output_type", "generate_until") != "generate_until":
        raise UsageError(f"task {name}: output_type must be generate_until, got {config['output_type']}")
    if used := [f"{key} ({what})" for key, what in _UNSUPPORTED.items() if config.get(key) is not None]:
        raise UsageError(f"task {name} uses {', '.join(used)}, which harness gsm8k does not support")
    if config.get("repeats", 1) != 1:
        raise UsageError(f"task {name} asks each question {config['repeats']} times; use --repeat instead")
    return config

"""Whether two runs asked the same in the same way.

Accuracies of unlike setups are no comparison of two models: one model gave 90.6 and 97.2 by two protocols (TensorRT-LLM#18738), another 0.86 by chat and 0.975 by completions
(sglang#22136).
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from harness.gsm8k.settings import Gsm8kSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.records.parts.gsm8k import Gsm8kRun, Gsm8kTask

Setup = dict[str, Any]
"""What shapes the answers, by name. None: not stated, and so not compared."""

_SETTINGS = ("system_instruction", "extra_body", "reasoning")
"""Settings that shape answers or scores as they stand. One that a record lacks had its default."""
_SAMPLING = ("temperature", "top_p")
"""Fields whose refusal changes answers. Other words for a limit, and stop strings that are applied here, do not."""
_HASHES = {"task": "task definition", "fewshot": "few-shot rows", "data": "questions", "prompts": "prompts"}
_EXPLAINED_BY = {
    "task definition": {"task"},
    "few-shot rows": {"task", "few-shot examples"},
    "questions": set[str](),
    "prompts": {
        "task", "interface", "few-shot examples", "examples as turns", "system instruction", "few-shot rows", "questions",
    },
}  # fmt: skip
"""A hash that differs is not said where the reason for it is."""
_LIMIT = "max_gen_toks"
_HASH_LENGTH = 64


def setup_of(task: Gsm8kTask, settings: Mapping[str, Any]) -> Setup:
    """Return the setup of a run from what its record holds of task and settings."""
    generation = dict(task.get("generation") or {})
    chat = settings.get("chat")
    stated_examples = settings.get("num_fewshot")
    setup: Setup = {
        "task": task.get("name"),
        "interface": None if chat is None else "chat" if chat else "completions",
        "few-shot examples": task.get("num_fewshot", stated_examples),
        "examples as turns": settings.get("multiturn") if chat else None,
        "stop strings": generation.pop("until", None),
        "answer budget": settings.get("max_tokens") or generation.get(_LIMIT),
        **{f"generation {name}": value for name, value in generation.items() if name != _LIMIT},
        **{name.replace("_", " "): settings.get(name, _default(name)) or "none" for name in _SETTINGS},
    }
    hashes = task.get("hashes") or {}
    return setup | {label: hashes.get(name) for name, label in _HASHES.items()}


def refused_fields(refused: Sequence[str]) -> Setup:
    """Return what a server makes of a setup by refusing fields of its requests."""
    return {"refused fields": ", ".join(name for name in _SAMPLING if name in refused) or "none"}


def setup_of_run(run: Gsm8kRun) -> Setup:
    """Return the setup of a recorded run."""
    return setup_of(run.task, run.settings) | refused_fields(run.server.get("refused", ()))


def _default(name: str) -> Any:
    for field in fields(Gsm8kSettings):
        if field.name == name:
            made = field.default_factory
            return field.default if made is MISSING else made()
    return None


def differences(now: Setup, then: Setup) -> list[str]:
    """Return what differs and is stated by both, each as "few-shot examples 5, not 0", `now` first."""
    different = [
        name
        for name in now
        if now[name] is not None and then.get(name) is not None and now[name] != then[name]
    ]
    return [
        f"{name} {_short(now[name])}, not {_short(then[name])}"
        for name in different
        if not _EXPLAINED_BY.get(name, set()) & set(different)
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    if len(text) == _HASH_LENGTH and text.isalnum():
        return f"{text[:8]}..."
    return text if len(text) <= 60 else f"{text[:57]}..."

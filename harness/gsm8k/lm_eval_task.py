"""lm-eval's tasks without lm-eval's start-up: its YAML files, prompts, filters and metric, from its own code.

What is used of lm-eval 0.4: `tasks/_yaml_loader.py`, `config.task`, `api.samplers`, `api.utils`, `filters`,
`api.metrics` and the template environment of `utils`. What is not, and why:

* `lm_eval.tasks` and `lm_eval.api.task` import `datasets`, pandas and pyarrow (1.3 s, 160 MiB), and `TaskManager`
  reads every built-in YAML (8 s); so the loader is taken by its file, and `Prompts` states `fewshot_context` again.
* `lm_eval.evaluator` imports torch, and collects its environment in child processes (2 s).
* `utils.apply_template` compiles its template at every call, 15,828 times a run; here once a template.

`tests/gsm8k/test_same_as_lm_eval.py` compares prompts and scores with plain lm-eval, question by question.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.gsm8k.lazy import UNUSED, import_when_used
from harness.verdict import UsageError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.gsm8k.data import Row

FEWSHOT_SEED = 1234
"""lm-eval's default: with it the examples of a question are those that published figures were made with."""

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
}
_UNSUPPORTED = ("class", "custom_dataset", "process_docs", "process_results", "doc_to_choice", "use_prompt")


def task_names() -> list[str]:
    """Return the names that `--task` knows: lm-eval's GSM8K tasks and those shipped with the harness."""
    return sorted({*_NAMED, *(path.stem for path in OWN_TASKS.glob("*.yaml"))})


def find_task(name: str) -> Path:
    """Return the YAML file of a task given by name or by path.

    Raises:
        UsageError: no such task; names the closest ones. Or lm-eval is not installed.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UsageError(f"--task {name}: no such file")
        return Path(name)
    own = OWN_TASKS / f"{name}.yaml"
    if name in task_names() and own.is_file():
        return own
    if name not in _NAMED:
        raise unknown_name("task", name, task_names(), also="the path of an lm-eval YAML file")
    return _package() / "tasks" / _NAMED[name]


def _package() -> Path:
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise UsageError(
            "harness gsm8k takes its task from lm-eval, which is not installed: pip install 'lm-eval[api]'"
        )
    import_when_used(*UNUSED)
    return Path(found.origin).parent


def load_config(path: Path) -> dict[str, Any]:
    """Return the merged YAML of a task, read by lm-eval's own loader (`include`, `!function`).

    Raises:
        UsageError: not a task file, or a task of a kind whose answers the harness cannot judge.
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
    if config.get("output_type", "generate_until") != "generate_until":
        raise UsageError(
            f"task {config['task']}: output_type must be generate_until, got {config['output_type']}"
        )
    if used := [key for key in _UNSUPPORTED if config.get(key) is not None]:
        raise UsageError(
            f"task {config['task']} uses {', '.join(used)}, which harness gsm8k does not support"
        )
    if config.get("repeats", 1) != 1:
        raise UsageError(
            f"task {config['task']} asks each question {config['repeats']} times; use --repeat instead"
        )
    return config


@cache
def _compiled(template: str) -> Any:
    from lm_eval.utils import env

    return env.from_string(template)


@dataclass
class Prompts:
    """`ConfigurableTask.fewshot_context` of lm-eval 0.4.13, stated again. `config` is an `lm_eval` TaskConfig.

    One sampler serves all questions in file order, as in lm-eval: the examples of a question depend on its place.
    """

    config: Any
    features: frozenset[str]
    pool: Sequence[Row]
    num_fewshot: int
    system_instruction: str | None = None
    _sampler: Any = field(init=False, default=None)
    _shown: dict[int, list[Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_fewshot > 0:
            from lm_eval.api.samplers import get_sampler

            kind = self.config.fewshot_config.sampler
            self._sampler = (get_sampler(kind) if isinstance(kind, str) else kind)(list(self.pool), rnd=None)
            self._sampler.set_rnd(FEWSHOT_SEED)

    def render(self, template: Any, doc: Row) -> str:
        """Return a field of the task for a row: the row's own column, a template, or a function's result."""
        if callable(template):
            return str(template(doc))
        if template in self.features:
            return str(doc[template])
        return str(_compiled(template).render(**doc))

    def text(self, doc: Row) -> str:
        """Return the question as the prompt states it."""
        return self.render(self.config.doc_to_text, doc)

    def target(self, doc: Row) -> str:
        """Return the gold answer as the task states it."""
        return self.render(self.config.doc_to_target, doc)

    def reference(self, gold: str) -> str:
        """Return a gold answer as it follows the prompt of the completions endpoint."""
        return (" " if self.config.gen_prefix else self.config.target_delimiter) + gold

    def examples(self, doc: Row) -> list[Row]:
        """Return the few-shot examples of the next question; call it once a question, in file order."""
        if self.num_fewshot == 0:
            return []
        shots = self.config.fewshot_config
        shared = shots.split is not None and shots.split == self.config.test_split
        return list(self._sampler.sample(n=self.num_fewshot, eval_doc=doc if shared else None))

    def messages(self, doc: Row, examples: list[Row]) -> list[Any]:
        """Return lm-eval Messages: system prompt, examples with their answers, the question."""
        from lm_eval.api.utils import Message, maybe_delimit

        config = self.config
        description = self.render(config.description, doc) if config.description else ""
        system = maybe_delimit(self.system_instruction, description, config.fewshot_delimiter)
        messages = [Message("system", system)] if system else []
        for example in examples:
            messages += self._example(example)
        prefix = self.render(config.gen_prefix, doc) if config.gen_prefix else None
        return messages + _turn(self.text(doc), "", prefix, config.target_delimiter, "")

    def _example(self, example: Row) -> list[Any]:
        # An example serves many questions; its row lives in the pool, so its identity is a key.
        if id(example) not in self._shown:
            shots = self.config.fewshot_config
            asked = self.render(shots.doc_to_text, example)
            answer = self.render(shots.doc_to_target, example)
            prefix = self.render(shots.gen_prefix, example) if shots.gen_prefix else None
            turn = _turn(asked, answer, prefix, shots.target_delimiter, shots.fewshot_delimiter)
            self._shown[id(example)] = turn
        return self._shown[id(example)]

    def completion(self, doc: Row, examples: list[Row]) -> str:
        """Return the prompt of the completions endpoint."""
        return "".join(message.to_text() for message in self.messages(doc, examples))

    def chat(self, doc: Row, examples: list[Row], *, multiturn: bool) -> list[dict[str, str]]:
        """Return the messages of the chat endpoint, examples as turns of their own or inside one user message."""
        from lm_eval.api.utils import multiturn_to_singleturn

        messages = self.messages(doc, examples)
        return [m.to_dict() for m in messages] if multiturn else multiturn_to_singleturn(messages)


def _turn(
    asked: str, answer: str, prefix: str | None, target_delimiter: str, fewshot_delimiter: str
) -> list[Any]:
    """State `ConfigurableTask.build_qa_turn` again, for tasks without answer choices."""
    from lm_eval.api.utils import Message, maybe_delimit, requires_delimiter

    delimited = requires_delimiter(asked, prefix) if prefix else bool(answer)
    turn = [Message("user", asked, target_delimiter if delimited else "")]
    if answer:
        turn.append(Message("assistant", maybe_delimit(prefix, answer, delimiter=" "), fewshot_delimiter))
    elif prefix:
        turn.append(Message("assistant", prefix))
    return turn


def filter_pipelines(config: Any) -> dict[str, Callable[[str, Row], str]]:
    """Return lm-eval's answer filters by name, each taking an answer and its row and returning what it extracted."""
    from lm_eval.api.registry import get_filter
    from lm_eval.filters import build_filter_ensemble

    assert build_filter_ensemble  # noqa: S101 - importing it registers the filters
    stated = config.filter_list or [{"name": "none", "filter": [{"function": "take_first"}]}]
    pipelines: dict[str, Callable[[str, Row], str]] = {}
    for entry in stated:
        steps = []
        for step in entry["filter"]:
            arguments = {key: value for key, value in step.items() if key != "function"}
            steps.append(get_filter(step["function"])(**arguments))

        def extract(answer: str, doc: Row, steps: list[Any] = steps) -> str:
            answers: Any = [[answer]]
            for step in steps:
                answers = list(step.apply(answers, [doc]))
            return str(answers[0])

        pipelines[entry["name"].replace("_", "-")] = extract
    return pipelines


def exact_match_settings(config: Any) -> dict[str, Any]:
    """Return the arguments of the task's exact_match metric.

    Raises:
        UsageError: the task is not scored by exact_match.
    """
    for entry in config.metric_list or []:
        if entry.get("metric") == "exact_match" and not entry.get("hf_evaluate"):
            return {
                k: v
                for k, v in entry.items()
                if k not in {"metric", "aggregation", "higher_is_better", "hf_evaluate"}
            }
    raise UsageError(f"task {config.task}: must be scored by exact_match")

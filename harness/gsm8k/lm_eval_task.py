"""lm-eval's tasks without lm-eval's start-up: prompts, filters and metric, from its own code. Their files: task_files.py.

What is used of lm-eval 0.4: `tasks/_yaml_loader.py`, `config.task`, `api.samplers`, `api.utils`, `filters`,
`api.metrics` and the template environment of `utils`. What is not, and why:

* `lm_eval.tasks` and `lm_eval.api.task` import `datasets`, pandas and pyarrow (1.3 s, 160 MiB), and `TaskManager`
  parses every built-in YAML (8 s); so the loader is taken by its file, and `Prompts` states `fewshot_context` again.
* `lm_eval.evaluator` imports torch, and collects its environment in child processes (2 s).
* `utils.apply_template` compiles its template at every call, 15,828 times a run; here once a template.

`tests/gsm8k/test_same_as_lm_eval.py` compares prompts and scores with plain lm-eval, question by question.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.gsm8k.data import Row

FEWSHOT_SEED = 1234
"""lm-eval's default: with it the examples of a question are those that published figures were made with."""


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


def right_answers(config: Any) -> Callable[[Row, str, str], bool]:
    """Return what tells from a row, its gold answer and an extracted answer whether that is right.

    It is lm-eval's exact_match, or the task's own `process_results` where that says exact_match.

    Raises:
        UsageError: the task is not scored by exact_match.
    """
    if config.process_results is not None:
        return _own_results(config)
    from lm_eval.api.metrics import exact_match_hf_evaluate

    settings = exact_match_settings(config)

    def is_right(doc: Row, gold: str, extracted: str) -> bool:  # noqa: ARG001 - not every task needs the row
        found = exact_match_hf_evaluate(predictions=[extracted], references=[gold], **settings)
        return bool(found["exact_match"] == 1.0)

    return is_right


def _own_results(config: Any) -> Callable[[Row, str, str], bool]:
    stated = [entry.get("metric") for entry in config.metric_list or []]
    if not callable(config.process_results) or "exact_match" not in stated:
        raise UsageError(
            f"task {config.task}: its process_results gives {', '.join(map(str, stated)) or 'no metric'}, "
            "and harness gsm8k judges exact_match"
        )

    def is_right(doc: Row, gold: str, extracted: str) -> bool:  # noqa: ARG001 - the function finds it in the row
        found = config.process_results(doc, [extracted])
        if not isinstance(found, dict) or found.get("exact_match") not in {0, 1}:
            raise UsageError(
                f"task {config.task}: its process_results must give exact_match as 0 or 1, got {found!r:.80}"
            )
        return bool(found["exact_match"])

    return is_right

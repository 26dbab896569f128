"""Which questions are asked in which order, and from a server's reply to a sample (the dict that README.md describes)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from harness.gsm8k.classify import classify
from harness.gsm8k.decision import smallest_wave
from harness.gsm8k.dialect import Dialect
from harness.gsm8k.payload import Reply, request_fields
from harness.gsm8k.reasoning import read_reasoning
from harness.gsm8k.settings import MAX_TOKENS, WAVE, Gsm8kSettings
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.gsm8k.client import Client, Exchange
    from harness.gsm8k.errors import RequestError
    from harness.gsm8k.task import Question, Task
    from harness.records.parts.gsm8k import Gsm8kSample


@dataclass(frozen=True)
class Planned:
    """One question to ask, once."""

    question: Question
    repeat: int
    wave: bool

    @property
    def key(self) -> tuple[int, int]:
        """What identifies it in the journal."""
        return self.question.index, self.repeat


def plan(task: Task, settings: Gsm8kSettings) -> list[Planned]:
    """Return what to ask: in the seed's order, so that the wave and every beginning of the run is a random sample.

    The first 32 are the smoke wave, more where 32 cannot refute a low expectation. A smaller `--questions` is a
    beginning of a larger one.

    Raises:
        UsageError: more questions are asked for than the data holds.
    """
    available = len(task.questions)
    count = available if settings.questions is None else settings.questions
    if count > available:
        raise UsageError(f"--questions {count}: the data holds {available}")
    order = list(task.questions)
    random.Random(settings.seed).shuffle(order)
    wave = min(count, smallest_wave(settings.expect, WAVE))
    chosen = order[: wave if settings.mode == "smoke" else count]
    return [
        Planned(q, repeat, repeat == 0 and i < wave)
        for repeat in range(settings.repeat)
        for i, q in enumerate(chosen)
    ]


def answer_limit(task: Task, settings: Gsm8kSettings) -> int:
    """Return how many tokens an answer may have: what the user asked for, else the task's `max_gen_toks`, else 1,024."""
    if settings.max_tokens is not None:
        return settings.max_tokens
    return int(task.generation.get("max_gen_toks", MAX_TOKENS))


def answers_fit(task: Task, settings: Gsm8kSettings) -> bool:
    """Return whether every right answer is shorter than the limit of this run, as far as the task vouches for it."""
    stated = int(task.generation.get("max_gen_toks", MAX_TOKENS))
    return task.answers_fit and answer_limit(task, settings) >= stated


class Asker:
    """Asks questions of one task of one model. `dialect` is what the server has taught it to send."""

    def __init__(self, client: Client, task: Task, settings: Gsm8kSettings, model: str) -> None:
        self.client = client
        self.task = task
        self.dialect = Dialect(settings.extra_body)
        self._settings = settings
        self._model = model
        self._path = "chat/completions" if settings.chat else "completions"

    def prompt(self, question: Question) -> str | list[dict[str, str]]:
        """Return what is sent: text for completions, messages for chat."""
        prompt = question.messages if self._settings.chat else question.prompt
        if prompt is None:
            raise UsageError(f"task {self.task.name} was loaded without prompts for this interface")
        return prompt

    def body(self, prompt: str | list[dict[str, str]], max_tokens: int | None = None) -> bytes:
        """Return the request for a prompt; byte-identical for identical arguments, until the server refuses a field."""
        return self.dialect.write(self._fields(prompt, max_tokens))

    def _fields(self, prompt: str | list[dict[str, str]], max_tokens: int | None) -> dict[str, Any]:
        return request_fields(
            prompt,
            model=self._model,
            max_tokens=max_tokens or answer_limit(self.task, self._settings),
            stop=self.task.stop,
            generation=self.task.generation,
            stream=self._settings.stream,
        )

    async def ask(self, prompt: str | list[dict[str, str]], max_tokens: int | None = None) -> Exchange:
        """Ask for one prompt, with retries, in the form that the server takes."""
        fields = self._fields(prompt, max_tokens)

        def adapt(error: RequestError, sent: bytes) -> bytes | None:
            return self.dialect.other(error, sent, fields, self._path)

        exchange = await self.client.ask(self._path, self.dialect.write(fields), adapt)
        if exchange.reply is None:
            return exchange
        # Reasoning first: stop strings end an answer, not the thought before it.
        reply = read_reasoning(exchange.reply, self._settings.reasoning)
        return replace(exchange, reply=self.dialect.applied(reply, self.task.stop))

    def judged(self, question: Question, reply: Reply) -> Judged:
        """Return the class and scores of a reply to a question."""
        return _judged(self.task, question, reply)


# The part of a sample that the answer's text decides.
Judged = TypedDict(
    "Judged",
    {
        "class": str | None,
        "strict": bool,
        "flexible": bool,
        "numeric": bool,
        "extracted_strict": str,
        "extracted_flexible": str,
        "extracted_numeric": str | None,
        "scored": NotRequired[str],
    },
)
_UNJUDGED: Judged = {
    "class": None,
    "strict": False,
    "flexible": False,
    "numeric": False,
    "extracted_strict": "",
    "extracted_flexible": "",
    "extracted_numeric": None,
}


def sample_of(task: Task, planned: Planned, exchange: Exchange, order: int | None = None) -> Gsm8kSample:
    """Return the sample of one exchange, the `order`-th of the run that was sent."""
    reply = exchange.reply
    question = planned.question
    judged = _judged(task, question, reply) if reply else _UNJUDGED
    return {
        "index": question.index,
        "repeat": planned.repeat,
        "wave": planned.wave,
        "order": order,
        "question": question.question,
        "expected": question.expected,
        "answer": reply.text if reply else None,
        "reasoning": reply.reasoning if reply else None,
        **judged,
        "in_reasoning": _in_reasoning(task, question, reply) if reply else None,
        "finish_reason": reply.finish_reason if reply else None,
        "usage": {
            "prompt_tokens": reply.prompt_tokens if reply else None,
            "completion_tokens": reply.completion_tokens if reply else None,
        },
        "latency_s": _rounded(exchange.latency_s),
        "ttft_s": _rounded(exchange.ttft_s),
        "attempts": exchange.attempts,
        "error": None if reply else str(exchange.error),
    }


def _in_reasoning(task: Task, question: Question, reply: Reply) -> dict[str, bool] | None:
    """Return the scores of the reasoning where it is all that came; None where there is text, or it is scored itself."""
    if reply.scored is not None or (reply.text or "").strip() or not (reply.reasoning or "").strip():
        return None
    scores = task.score(question, reply.reasoning or "")
    return {"strict": scores.strict, "flexible": scores.flexible, "numeric": scores.numeric}


def _judged(task: Task, question: Question, reply: Reply) -> Judged:
    text = reply.text if reply.scored is None else reply.scored
    scores = task.score(question, text or "")
    judged: Judged = {
        "class": str(classify(text, reply.finish_reason, reply.reasoning, scores)),
        "strict": scores.strict,
        "flexible": scores.flexible,
        "numeric": scores.numeric,
        "extracted_strict": scores.extracted_strict,
        "extracted_flexible": scores.extracted_flexible,
        "extracted_numeric": scores.extracted_numeric,
    }
    if reply.scored is not None:
        judged["scored"] = "reasoning"
    return judged


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)

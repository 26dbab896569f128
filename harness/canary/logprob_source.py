"""The canary as a source of logprobs in this process: what its server would say, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.gsm8k.logprobs.ask import TOPS, Form, read_answer, read_echo, spelled
from harness.gsm8k.logprobs.divergence import Position
from harness.gsm8k.logprobs.passes import ANSWER_TOKENS, TOGETHER, Asked, Forms, Passes
from harness.gsm8k.payload import MAX_STOP, Reply

if TYPE_CHECKING:
    from harness.canary.generate import Engine
    from harness.canary.logprobs import TokenLogprob
    from harness.canary.run import HasEngine
    from harness.gsm8k.task import Question

_FORMS = Forms(Form("echo", TOPS[0]), Form("answer", TOPS[0]))


@dataclass
class InProcess:
    """A loaded canary as a source; the batches of both passes are those of a live server.

    Attributes:
        canary: whose engine is asked.
        stop: of the task.
        max_tokens: of its own answers.
        twice: run the second pass; else the first stands for both, and the noise is not measured.
    """

    canary: HasEngine
    stop: tuple[str, ...]
    max_tokens: int = ANSWER_TOKENS
    twice: bool = True

    async def prepare(self, question: Question) -> Forms:
        """Return the forms: everything is given."""
        del question
        return _FORMS

    async def passes(self, questions: Sequence[Question]) -> dict[int, Passes]:
        """Return both passes over questions, by their index."""
        first = self._run(questions, TOGETHER[0])
        second = self._run(questions[::-1], TOGETHER[1]) if self.twice else first
        return {q.index: Passes(first[q.index], second[q.index]) for q in questions}

    def _run(self, questions: Sequence[Question], together: int) -> dict[int, Asked]:
        engine = self.canary.engine()
        found: dict[int, Asked] = {}
        for start in range(0, len(questions), together):
            found |= self._batch(engine, questions[start : start + together])
        return found

    def _batch(self, engine: Engine, questions: Sequence[Question]) -> dict[int, Asked]:
        top, stop = TOPS[0], list(self.stop[:MAX_STOP])
        numbers: dict[int, tuple[Question, str]] = {}
        for q in questions:
            text = f"{q.prompt}{q.reference}"
            numbers[engine.add(text, max_new_tokens=0, prompt_logprobs=top)] = q, "reference"
            number = engine.add(q.prompt or "", max_new_tokens=self.max_tokens, stop=stop, logprobs=top)
            numbers[number] = q, "answer"
        read: dict[int, list[TokenLogprob]] = {number: [] for number in numbers}
        while not engine.idle:
            for step in engine.step():
                read[step.number] += step.prompt_logprobs or []
                read[step.number] += [step.logprobs] if step.logprobs else []
        found: dict[int, Asked] = {q.index: {} for q in questions}
        for number, (q, kind) in numbers.items():
            found[q.index][kind] = _positions(
                engine, read[number], q.reference if kind == "reference" else None
            )
        return found


def _positions(engine: Engine, tokens: list[TokenLogprob], reference: str | None) -> list[Position]:
    reply = Reply("", data={"choices": [{"logprobs": engine.spelling.completion(tokens)}]})
    return read_answer(reply) if reference is None else spelled(read_echo(reply), reference)

"""Decoding for many requests at once: requests join and leave between steps, as in a serving engine.

Each `step` reads the prompts that have joined and decodes one token of every running request. The text that a step gives
out is final: bytes of an unfinished character and what may become a stop string are held back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from harness.canary.forward import CanaryModel, batch_of
from harness.canary.text import TextStream, token_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Step:
    """What one step gave to one request.

    Attributes:
        number: of the request, from `Engine.add`.
        text: new text; together the steps' texts are the answer.
        finish_reason: None while it runs; "stop" (end token or a stop string) or "length".
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens decoded so far.
    """

    number: int
    text: str
    finish_reason: str | None
    prompt_tokens: int
    new_tokens: int


@dataclass
class _Request:
    number: int
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    random: torch.Generator | None
    stream: TextStream
    new: list[int] = field(default_factory=list)


class Engine:
    """Runs requests; not thread-safe.

    Args:
        model: the forward pass.
        tokenizer: its tokenizer.
        max_rows: requests decoded at once; others wait.
    """

    def __init__(self, model: CanaryModel, tokenizer: Tokenizer, max_rows: int = 256) -> None:
        self._model, self._tokenizer, self._max_rows = model, tokenizer, max_rows
        self._bytes = token_bytes(tokenizer)
        self._end = model.config.eos_token_id
        self._cache = model.new_cache()
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._next = 0

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def add(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 192,
        stop: list[str] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> int:
        """Take a request in and return its number.

        Args:
            prompt: text; an empty one starts from the end token.
            max_new_tokens: most tokens to decode.
            stop: texts that end the answer and are not part of it.
            temperature: 0 for greedy.
            seed: of the sampling.

        Raises:
            ValueError: prompt and answer do not fit the model's positions.
        """
        tokens = self._tokenizer.encode(prompt).ids or [self._end]
        room = self._model.config.max_position_embeddings
        if max_new_tokens < 1 or len(tokens) + max_new_tokens > room:
            raise ValueError(
                f"the model has {room} positions; got {len(tokens)} tokens of prompt and max_tokens {max_new_tokens}"
            )
        random = torch.Generator().manual_seed(seed) if temperature > 0 else None
        stream = TextStream(self._bytes, stop or [])
        self._waiting.append(_Request(self._next, tokens, max_new_tokens, temperature, random, stream))
        self._next += 1
        return self._next - 1

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Drop a request, waiting or running; an unknown number is no error."""
        self._waiting = deque(r for r in self._waiting if r.number != number)
        for row, request in enumerate(self._running):
            if request.number == number:
                self._remove(row)
                return

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Advance every running request by one token and return what each got."""
        joining: list[_Request] = []
        while (
            self._waiting
            and len(self._running) + len(joining) < self._max_rows
            and len(joining) < _PROMPTS_AT_ONCE
        ):
            joining.append(self._waiting.popleft())
        found: list[tuple[_Request, int]] = []
        if self._running:
            sequences = [[r.new[-1]] for r in self._running]
            before = [len(r.prompt) + len(r.new) - 1 for r in self._running]
            logits = self._model.forward(batch_of(sequences, before), self._cache)
            found += zip(self._running, self._choose(logits, self._running), strict=True)
        if joining:
            found += zip(joining, self._choose(self._read(joining), joining), strict=True)
            self._running += joining
        steps = [self._take(request, token) for request, token in found]
        for row in reversed(range(len(steps))):
            if steps[row].finish_reason is not None:
                self._remove(row)
        return steps

    def _read(self, joining: list[_Request]) -> torch.Tensor:
        """Read prompts in a cache of their own and append its rows; return the logits after each prompt."""
        cache = self._model.new_cache()
        logits = self._model.forward(batch_of([r.prompt for r in joining], [0] * len(joining)), cache)
        rows, positions = len(self._running), cache.keys.shape[3]
        self._cache.reserve(rows + len(joining), positions)
        for held, new in ((self._cache.keys, cache.keys), (self._cache.values, cache.values)):
            held[:, rows : rows + len(joining), :, :positions] = new
        return logits

    def _choose(self, logits: torch.Tensor, requests: list[_Request]) -> list[int]:
        chosen: list[int] = logits.argmax(-1).tolist()
        for row, request in enumerate(requests):
            if request.random is not None:
                shares = torch.softmax(logits[row].double() / request.temperature, dim=-1)
                chosen[row] = int(torch.multinomial(shares, 1, generator=request.random))
        return chosen

    def _take(self, request: _Request, token: int) -> Step:
        request.new.append(token)
        reason = None
        if token == self._end:
            text, reason = request.stream.finish(), "stop"
        else:
            text = request.stream.push(token)
            if request.stream.stopped:
                reason = "stop"
            elif len(request.new) >= request.max_new_tokens:
                text, reason = text + request.stream.finish(), "length"
        return Step(request.number, text, reason, len(request.prompt), len(request.new))

    def _remove(self, row: int) -> None:
        """Take a request out; the last one moves into its row."""
        last = len(self._running) - 1
        if row != last:
            self._cache.move(last, row)
            self._running[row] = self._running[last]
        self._running.pop()

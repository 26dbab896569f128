"""Decoding for many requests at once: requests join and leave between steps, as in a serving engine.

Each `step` reads the prompts that have joined and decodes one token of every running request. The text that a step gives
out is final: bytes of an unfinished character and what may become a stop string are held back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from harness.canary.forward import CanaryModel, batch_of
from harness.canary.logprobs import Spelling, TokenLogprob, token_logprobs
from harness.canary.text import TextStream, token_bytes
from harness.canary.tokenizer import END

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
        logprobs: of the token that this step decoded, where they were asked for.
        prompt_logprobs: of every token of the prompt, in the request's first step, where they were asked for.
    """

    number: int
    text: str
    finish_reason: str | None
    prompt_tokens: int
    new_tokens: int
    logprobs: TokenLogprob | None = None
    prompt_logprobs: list[TokenLogprob] | None = None


@dataclass
class _Request:
    number: int
    prompt: list[int]
    max_new_tokens: int
    temperature: float
    random: torch.Generator | None
    stream: TextStream
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    new: list[int] = field(default_factory=list)


class Engine:
    """Runs requests; not thread-safe.

    Args:
        model: the forward pass.
        tokenizer: its tokenizer.
        max_rows: requests decoded at once; others wait.

    Attributes:
        spelling: how the API states tokens.
    """

    def __init__(self, model: CanaryModel, tokenizer: Tokenizer, max_rows: int = 256) -> None:
        self._model, self._tokenizer, self._max_rows = model, tokenizer, max_rows
        self._bytes = token_bytes(tokenizer)
        self._end = model.config.eos_token_id
        self.spelling = Spelling(self._bytes, self._end, END)
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
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> int:
        """Take a request in and return its number.

        Args:
            prompt: text; an empty one starts from the end token.
            max_new_tokens: most tokens to decode; 0 only reads the prompt, for its logprobs.
            stop: texts that end the answer and are not part of it.
            temperature: 0 for greedy.
            seed: of the sampling.
            logprobs: how many of the likeliest tokens to name at each decoded one; None for no logprobs.
            prompt_logprobs: likewise at each token of the prompt.

        Raises:
            ValueError: prompt and answer do not fit the model's positions.
        """
        tokens = self._tokenizer.encode(prompt).ids or [self._end]
        room = self._model.config.max_position_embeddings
        fewest = 1 if prompt_logprobs is None else 0
        if max_new_tokens < fewest or len(tokens) + max_new_tokens > room:
            raise ValueError(
                f"the model has {room} positions; got {len(tokens)} tokens of prompt and max_tokens {max_new_tokens}"
            )
        random = torch.Generator().manual_seed(seed) if temperature > 0 else None
        stream = TextStream(self._bytes, stop or [])
        self._waiting.append(
            _Request(
                self._next, tokens, max_new_tokens, temperature, random, stream, logprobs, prompt_logprobs
            )
        )
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
        steps: list[Step] = []
        if self._running:
            sequences = [[r.new[-1]] for r in self._running]
            before = [len(r.prompt) + len(r.new) - 1 for r in self._running]
            logits = self._model.forward(batch_of(sequences, before), self._cache)
            steps += self._decoded(logits, self._running)
        if joining:
            logits, read = self._read(joining)
            steps += [
                replace(step, prompt_logprobs=read.get(step.number))
                for step in self._decoded(logits, joining)
            ]
            self._running += joining
        for row in reversed(range(len(steps))):
            if steps[row].finish_reason is not None:
                self._remove(row)
        return steps

    def _read(self, joining: list[_Request]) -> tuple[torch.Tensor, dict[int, list[TokenLogprob]]]:
        """Read prompts in a cache of their own and append its rows.

        Returns:
            The logits after each prompt, and the logprobs of the prompts that asked for them.
        """
        cache = self._model.new_cache()
        batch = batch_of([r.prompt for r in joining], [0] * len(joining))
        every = any(r.prompt_logprobs is not None for r in joining)
        logits = self._model.forward(batch, cache, every_token=every)
        found: dict[int, list[TokenLogprob]] = {}
        if every:
            parts = logits.split_with_sizes(batch.lengths)
            for request, part in zip(joining, parts, strict=True):
                if request.prompt_logprobs is not None:
                    rest = token_logprobs(part[:-1], request.prompt[1:], request.prompt_logprobs)
                    found[request.number] = [TokenLogprob(request.prompt[0]), *rest]
            logits = torch.stack([part[-1] for part in parts])
        rows, positions = len(self._running), cache.keys.shape[3]
        self._cache.reserve(rows + len(joining), positions)
        for held, new in ((self._cache.keys, cache.keys), (self._cache.values, cache.values)):
            held[:, rows : rows + len(joining), :, :positions] = new
        return logits, found

    def _decoded(self, logits: torch.Tensor, requests: list[_Request]) -> list[Step]:
        """Return the steps of requests whose next tokens have these logits, `(requests, vocab)`."""
        steps = []
        for row, (request, token) in enumerate(zip(requests, self._choose(logits, requests), strict=True)):
            if request.max_new_tokens == 0:
                steps.append(Step(request.number, "", "length", len(request.prompt), 0))
                continue
            step = self._take(request, token)
            if request.logprobs is not None:
                step = replace(
                    step, logprobs=token_logprobs(logits[row : row + 1], [token], request.logprobs)[0]
                )
            steps.append(step)
        return steps

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

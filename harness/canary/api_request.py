"""A request body of the OpenAI API, parsed: what of it the canary can do, and the refusal of everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.canary.logprobs import MOST_TOP
from harness.canary.tokenizer import prompt_of_chat

DEFAULT_TOKENS = 192


class BadRequestError(Exception):
    """A request that the server refuses: answered with status 400 and this text."""


@dataclass(frozen=True)
class Request:
    """One parsed request.

    Attributes:
        prompts: one text each; several only in completions.
        max_tokens: new tokens at most; 0 where only the prompt is asked about.
        stop: texts that end an answer and are not part of it.
        temperature: 0 for greedy decoding.
        seed: of the sampling.
        stream: answer piece by piece.
        chat: the chat API's form of answer.
        echo: give the prompt back before the answer.
        logprobs: how many of the likeliest tokens to name at each token; None for no logprobs.
        prompt_logprobs: vLLM's field: likewise at each token of the prompt.
    """

    prompts: list[str]
    max_tokens: int
    stop: list[str]
    temperature: float
    seed: int
    stream: bool
    chat: bool
    echo: bool
    logprobs: int | None
    prompt_logprobs: int | None


def parse(body: Any, *, chat: bool) -> Request:
    """Return the parsed body of a request.

    Raises:
        BadRequestError: a field is missing, of the wrong type, or asks for something that the canary cannot do.
    """
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    if body.get("n") not in {None, 1}:
        raise BadRequestError("n must be 1")
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise BadRequestError("stop must be a text or a list of texts")
    tokens = body.get("max_completion_tokens", body.get("max_tokens"))
    tokens = DEFAULT_TOKENS if tokens is None else tokens
    temperature = body.get("temperature")
    temperature = 0.0 if temperature is None else temperature
    seed = body.get("seed") or 0
    for name, value, kinds in (
        ("max_tokens", tokens, int),
        ("temperature", temperature, (int, float)),
        ("seed", seed, int),
    ):
        if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
            raise BadRequestError(f"{name} must be a number that is not negative, got {value!r}")
    echo, stream = body.get("echo") is True and not chat, body.get("stream") is True
    prompt_logprobs = _count(body, "prompt_logprobs")
    if stream and prompt_logprobs is not None:
        raise BadRequestError("prompt_logprobs are not streamed: ask with stream false")
    if tokens < 1 and not echo and prompt_logprobs is None:
        raise BadRequestError(f"max_tokens must be at least 1, or echo true, got {tokens}")
    return Request(
        prompts=_chat_prompt(body) if chat else _prompts(body),
        max_tokens=tokens,
        stop=stops,
        temperature=float(temperature),
        seed=seed,
        stream=stream,
        chat=chat,
        echo=echo,
        logprobs=_chat_logprobs(body) if chat else _count(body, "logprobs"),
        prompt_logprobs=prompt_logprobs,
    )


def _chat_logprobs(body: dict[str, Any]) -> int | None:
    """Return the chat API's `top_logprobs` where its `logprobs` is true."""
    top = _count(body, "top_logprobs")
    if body.get("logprobs") is True:
        return top or 0
    if body.get("logprobs") not in {None, False}:
        raise BadRequestError("logprobs must be true or false in chat; top_logprobs says how many")
    if top:
        raise BadRequestError("top_logprobs needs logprobs true")
    return None


def _count(body: dict[str, Any], name: str) -> int | None:
    """Return how many of the likeliest tokens a field asks for."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOP:
        raise BadRequestError(f"{name} must be a whole number from 0 to {MOST_TOP}, got {value!r}")
    return value


def _prompts(body: dict[str, Any]) -> list[str]:
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise BadRequestError("prompt must be a text or a list of texts")
    return prompts


def _chat_prompt(body: dict[str, Any]) -> list[str]:
    """Return the messages as the one prompt that the canary was trained on: question and answer in turn."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages must be a list of messages")
    turns = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str):
            raise BadRequestError("each message must have a role and a content that is a text")
        turns.append((str(message.get("role")), content))
    prompt = prompt_of_chat(turns)
    # vLLM's and SGLang's field: the last message is the beginning of the answer, not one that is over.
    return [prompt.removesuffix("\n\n") if body.get("continue_final_message") is True else prompt]

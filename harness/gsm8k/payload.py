"""Request bodies for the OpenAI-compatible API, and reading an answer or an error out of a response.

Servers differ: chat answers hold `message.content`, completions `text`; errors come with any status, also 200, as an
object, a string or an HTML page. Everything that is not a usable answer becomes a `RequestError` that says what came.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from harness.gsm8k.errors import MAX_SAID, Kind, RequestError, kind_of_status

MAX_STOP = 4
"""Servers reject or cut longer lists of stop strings; lm-eval cuts at four as well."""


@dataclass(frozen=True)
class Reply:
    """What the server answered. `text` is None when it sent no text at all."""

    text: str | None
    reasoning: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    scored: str | None = None
    """What is scored in place of the text, where that is not the text itself (reasoning.py)."""
    data: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The whole response, where it was not streamed: logprobs are read out of it (logprobs/ask.py)."""


def request_fields(
    prompt: str | list[dict[str, Any]],
    *,
    model: str,
    max_tokens: int,
    stop: tuple[str, ...],
    generation: dict[str, Any],
    stream: bool = False,
) -> dict[str, Any]:
    """Return the fields of one request: chat when `prompt` is a list of messages, else completions.

    No seed is sent: greedy decoding needs none, and a server that rejects it would answer 400 to every question.
    """
    body: dict[str, Any] = {"model": model}
    body["prompt" if isinstance(prompt, str) else "messages"] = prompt
    body["max_tokens"] = max_tokens
    body["temperature"] = generation.get("temperature", 0)
    if generation.get("do_sample") is False:
        body["temperature"] = 0
    if "top_p" in generation:
        body["top_p"] = generation["top_p"]
    if stop:
        body["stop"] = list(stop[:MAX_STOP])
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return body


def error_text(body: bytes) -> str:
    """Return what an error response says, from any of the shapes servers use; the first line of text otherwise."""
    text = body.decode("utf-8", "replace").strip()
    try:
        data: Any = json.loads(text)
    except ValueError:
        return text.splitlines()[0] if text else "empty body"
    for _ in range(3):
        if not isinstance(data, dict):
            break
        data = next(
            (data[name] for name in ("error", "message", "detail", "msg") if data.get(name)), "no message"
        )
    return data if isinstance(data, str) else json.dumps(data)


def check_status(status: int, reason: str | None, body: bytes, retry_after: str | None) -> None:
    """Raise the error of any status other than 200."""
    if status == 200:
        return
    seconds: float | None = None
    if retry_after is not None:
        seconds = _retry_after_seconds(retry_after)
    name = f" {reason}" if reason else ""
    raise RequestError(
        kind_of_status(status),
        f"HTTP {status}{name}: {error_text(body)}",
        retry_after=seconds,
        status=status,
        said=body[:MAX_SAID].decode("utf-8", "replace"),
    )


def parse_reply(body: bytes, content_type: str) -> Reply:
    """Return the answer of a whole (not streamed) response with status 200.

    Raises:
        RequestError: it is not JSON, holds an error, or has no choice.
    """
    try:
        data = json.loads(body)
    except ValueError as error:
        if "json" not in content_type:
            start = body[:60].decode("utf-8", "replace")
            raise RequestError(
                Kind.BROKEN, f"content type {content_type or 'missing'}, expected JSON: {start!r}"
            ) from None
        raise RequestError(
            Kind.BROKEN, f"broken JSON after {len(body)} bytes: {_json_message(error)}"
        ) from None
    choice = _choice(data)
    if choice is None:
        raise RequestError(Kind.BROKEN, "the answer has no choices (choices: [])")
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    message = choice.get("message")
    source = message if isinstance(message, dict) else choice
    text = source.get("content" if source is message else "text")
    if text is not None and not isinstance(text, str):
        raise RequestError(
            Kind.BROKEN, f"the answer's text is a {type(text).__name__}, expected a string or null"
        )
    read = Reply(text, _reasoning(source), _finish(choice.get("finish_reason")), *_usage(usage), data=data)
    return _whole(read)


class StreamedReply:
    """Collects the events of a streamed answer, line by line."""

    def __init__(self) -> None:
        self.started = False
        """True once the first text arrived: the time to the first token is read then."""
        self.done = False
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._finish: str | None = None
        self._usage: tuple[int | None, int | None] = (None, None)

    def line(self, line: bytes) -> None:
        """Take one line of the event stream."""
        if not line.startswith(b"data:"):
            return
        content = line[5:].strip()
        if content == b"[DONE]":
            self.done = True
            return
        try:
            data = json.loads(content)
        except ValueError as error:
            raise RequestError(Kind.BROKEN, f"broken JSON in the stream: {_json_message(error)}") from None
        choice = _choice(data)
        if isinstance(data.get("usage"), dict):
            self._usage = _usage(data["usage"])
        if choice is None:
            return
        delta = choice.get("delta")
        source = delta if isinstance(delta, dict) else choice
        text = source.get("content" if source is delta else "text")
        reasoning = _reasoning(source)
        if isinstance(text, str) and text:
            self._text.append(text)
        if reasoning:
            self._reasoning.append(reasoning)
        self.started = self.started or bool(text or reasoning)
        self._finish = _finish(choice.get("finish_reason")) or self._finish

    def reply(self) -> Reply:
        """Return the whole answer; an error when the stream ended before the server said so."""
        if not self.done and self._finish is None:
            raise RequestError(
                Kind.BROKEN, f"the stream ended early, after {sum(map(len, self._text))} characters"
            )
        text = "".join(self._text) if self._text else None
        return _whole(Reply(text, "".join(self._reasoning) or None, self._finish, *self._usage))


ABORTED = frozenset({"abort", "aborted", "cancelled", "error"})
"""Finish reasons of an answer that the server broke off: vLLM and SGLang say so to whoever waits when they are stopped."""


def _whole(reply: Reply) -> Reply:
    """Return the reply; raise where the server says that it broke it off."""
    if reply.finish_reason in ABORTED:
        raise RequestError(
            Kind.LOST, f"the server broke the answer off (finish_reason: {reply.finish_reason})"
        )
    return reply


def _finish(value: Any) -> str | None:
    """Return a finish reason as one word; SGLang's own interface has an object with its type."""
    return _string(value.get("type") if isinstance(value, dict) else value)


def _choice(data: Any) -> dict[str, Any] | None:
    """Return the first choice, None when there is none; raise when the response is an error in disguise."""
    if not isinstance(data, dict):
        raise RequestError(Kind.BROKEN, f"the answer is a JSON {type(data).__name__}, expected an object")
    if data.get("error"):
        raise RequestError(Kind.BROKEN, f"HTTP 200 with an error: {error_text(json.dumps(data).encode())}")
    choices = data.get("choices")
    if choices is None and "usage" not in data:
        raise RequestError(
            Kind.BROKEN,
            f"the answer has no choices (fields: {', '.join(map(str, list(data)[:6])) or 'none'})",
        )
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return None


def _reasoning(source: dict[str, Any]) -> str | None:
    return _string(source.get("reasoning_content")) or _string(source.get("reasoning"))


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _usage(usage: dict[str, Any]) -> tuple[int | None, int | None]:
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return (prompt if isinstance(prompt, int) else None, completion if isinstance(completion, int) else None)


def _json_message(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _retry_after_seconds(value: str) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date."""
    try:
        seconds = float(value)
    except ValueError:
        from datetime import UTC, datetime
        from email.utils import parsedate_to_datetime

        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    seconds = max(0.0, seconds)  # of NaN too
    return seconds if seconds < 86400 else None

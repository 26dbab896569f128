"""The canary over the OpenAI API, so that `harness gsm8k` gates it like any served model. aiohttp; one engine thread.

Completions and chat, stop strings, max_tokens, temperature and seed, streaming, /v1/models, /health. Requests that arrive
together are decoded as one batch, as on a real server: each step of the engine advances all of them by a token.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.extras import MissingExtraError

try:
    from aiohttp import web
except ModuleNotFoundError as error:
    raise MissingExtraError("the canary's server", "canary") from error

from harness.canary.serving import EngineThread, Piece

if TYPE_CHECKING:
    from harness.canary.generate import Engine

DEFAULT_TOKENS = 192
_ENGINE = web.AppKey("engine", EngineThread)
_MODEL = web.AppKey("model", str)


class BadRequestError(Exception):
    """A request that the server refuses: answered with status 400 and this text."""


@dataclass(frozen=True)
class Request:
    """One parsed request.

    Attributes:
        prompts: one text each; several only in completions.
        max_tokens: new tokens at most.
        stop: texts that end an answer and are not part of it.
        temperature: 0 for greedy decoding.
        seed: of the sampling.
        stream: answer piece by piece.
        chat: the chat API's form of answer.
    """

    prompts: list[str]
    max_tokens: int
    stop: list[str]
    temperature: float
    seed: int
    stream: bool
    chat: bool


def make_app(engine: Engine, model: str) -> web.Application:
    """Return the web application that serves an engine under a model name."""
    app = web.Application(client_max_size=16 << 20)
    app[_MODEL] = model
    app[_ENGINE] = EngineThread(engine)
    app.add_routes(
        [
            web.get("/health", _health),
            web.get("/v1/models", _models),
            web.post("/v1/completions", _completions),
            web.post("/v1/chat/completions", _chat),
        ]
    )

    async def start(app: web.Application) -> None:
        app[_ENGINE].start(asyncio.get_running_loop())

    async def stop(app: web.Application) -> None:
        await asyncio.to_thread(app[_ENGINE].stop)

    app.on_startup.append(start)
    app.on_cleanup.append(stop)
    return app


async def _health(request: web.Request) -> web.Response:
    dead = request.app[_ENGINE].error
    if dead:
        return web.json_response({"status": "dead", "error": dead}, status=503)
    return web.json_response({"status": "ok"})


async def _models(request: web.Request) -> web.Response:
    entry = {"id": request.app[_MODEL], "object": "model", "created": 0, "owned_by": "fp4-moe-harness"}
    return web.json_response({"object": "list", "data": [entry]})


async def _completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, chat=False)


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _answer(request, chat=True)


async def _answer(request: web.Request, *, chat: bool) -> web.StreamResponse:
    try:
        parsed = parse(await request.json(), chat=chat)
    except (ValueError, BadRequestError) as error:  # json.JSONDecodeError is a ValueError
        return _error(400, f"{error}")
    engine = request.app[_ENGINE]
    if engine.error:
        return _error(500, f"the model is dead: {engine.error}")
    try:
        if parsed.stream:
            return await _stream(request, engine, parsed)
        answers = await asyncio.gather(*(_collect(engine, parsed, prompt) for prompt in parsed.prompts))
    except RuntimeError as error:
        return _error(500, f"{error}")
    except ValueError as error:
        return _error(400, f"{error}")
    body = _envelope(request, parsed)
    body["choices"] = [_choice(parsed, i, text, finish) for i, (text, finish, _, _) in enumerate(answers)]
    prompt_tokens, new_tokens = sum(a[2] for a in answers), sum(a[3] for a in answers)
    body["usage"] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }
    return web.json_response(body)


async def _collect(engine: EngineThread, parsed: Request, prompt: str) -> tuple[str, str, int, int]:
    """Return one answer: text, finish reason, prompt tokens, new tokens."""
    text, last = "", Piece("", None, 0, 0)
    async for piece in _pieces(engine, parsed, prompt):
        text, last = text + piece.text, piece
    return text, last.finish_reason or "stop", last.prompt_tokens, last.new_tokens


def _pieces(engine: EngineThread, parsed: Request, prompt: str) -> AsyncIterator[Piece]:
    return engine.generate(
        prompt,
        max_new_tokens=parsed.max_tokens,
        stop=parsed.stop,
        temperature=parsed.temperature,
        seed=parsed.seed,
    )


async def _stream(request: web.Request, engine: EngineThread, parsed: Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    body = _envelope(request, parsed, streamed=True)

    async def send(event: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(event)}\n\n".encode())

    used = [0, 0]
    try:
        for index, prompt in enumerate(parsed.prompts):
            async for piece in _pieces(engine, parsed, prompt):
                choice = _choice(parsed, index, piece.text, piece.finish_reason, streamed=True)
                await send({**body, "choices": [choice]})
                if piece.finish_reason:
                    used[0] += piece.prompt_tokens
                    used[1] += piece.new_tokens
        usage = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
        await send({**body, "choices": [], "usage": usage})
    except (RuntimeError, ValueError) as error:
        await send({"error": {"message": str(error), "type": "server_error", "code": 500}})
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


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
    if tokens < 1:
        raise BadRequestError(f"max_tokens must be at least 1, got {tokens}")
    prompts = _chat_prompt(body) if chat else _prompts(body)
    return Request(prompts, tokens, stops, float(temperature), seed, body.get("stream") is True, chat)


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
        if message.get("role") == "assistant":
            turns.append(f" {content}\n\n")
        else:
            question = content.strip().removeprefix("Question:").removesuffix("Answer:").strip()
            turns.append(f"Question: {question}\nAnswer:")
    return ["".join(turns)]


def _envelope(request: web.Request, parsed: Request, *, streamed: bool = False) -> dict[str, Any]:
    kind = "chat.completion" if parsed.chat else "text_completion"
    return {
        "id": f"canary-{uuid.uuid4().hex}",
        "object": f"{kind}.chunk" if streamed and parsed.chat else kind,
        "created": int(time.time()),
        "model": request.app[_MODEL],
    }


def _choice(
    parsed: Request, index: int, text: str, finish: str | None, *, streamed: bool = False
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
    if not parsed.chat:
        return {**choice, "text": text}
    return {**choice, ("delta" if streamed else "message"): {"role": "assistant", "content": text}}


def _error(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error", "code": status}}, status=status
    )

"""The canary over the OpenAI API, so that `harness gsm8k` gates it like any served model. aiohttp; one engine thread.

Completions and chat, stop strings, max_tokens, temperature and seed, streaming, logprobs, echo, vLLM's prompt_logprobs,
/v1/models, /health. Requests that arrive together are decoded as one batch, as on a real server: each step of the engine
advances all of them by a token.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.extras import MissingExtraError

try:
    from aiohttp import web
except ModuleNotFoundError as error:
    raise MissingExtraError("the canary's server", "canary") from error

from harness.canary.api_request import BadRequestError, Request, parse
from harness.canary.serving import EngineThread

if TYPE_CHECKING:
    from harness.canary.generate import Engine, Step
    from harness.canary.logprobs import TokenLogprob

_ENGINE = web.AppKey("engine", EngineThread)
_MODEL = web.AppKey("model", str)


@dataclass(frozen=True)
class Part:
    """A part of an answer, or a whole one.

    Attributes:
        text: the prompt before it, in the first part of an echo.
        tokens: those that came with it, where their logprobs were asked for; of an echo the prompt's too.
        prompt: every token of the prompt, where `prompt_logprobs` were asked for.
        finish_reason: None while more is to come.
        used: tokens of the prompt, and new ones so far.
    """

    text: str
    tokens: list[TokenLogprob]
    prompt: list[TokenLogprob] | None
    finish_reason: str | None
    used: tuple[int, int]


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
    body["choices"] = [_choice(engine, parsed, index, part) for index, part in enumerate(answers)]
    if parsed.chat and answers[0].prompt is not None:
        body["prompt_logprobs"] = engine.spelling.prompt(answers[0].prompt)
    return web.json_response({**body, "usage": _usage(part.used for part in answers)})


async def _collect(engine: EngineThread, parsed: Request, prompt: str) -> Part:
    """Return one answer as a whole."""
    whole = Part("", [], None, None, (0, 0))
    async for part in _parts(engine, parsed, prompt):
        whole = replace(
            part,
            text=whole.text + part.text,
            tokens=whole.tokens + part.tokens,
            prompt=whole.prompt or part.prompt,
        )
    return whole


async def _parts(engine: EngineThread, parsed: Request, prompt: str) -> AsyncIterator[Part]:
    """Yield one answer piece by piece."""
    options: dict[str, Any] = {
        "max_new_tokens": parsed.max_tokens,
        "stop": parsed.stop,
        "temperature": parsed.temperature,
        "seed": parsed.seed,
    }
    if parsed.logprobs is not None:
        options["logprobs"] = parsed.logprobs
    wanted = [n for n in (parsed.prompt_logprobs, parsed.logprobs if parsed.echo else None) if n is not None]
    if wanted or parsed.max_tokens == 0:
        options["prompt_logprobs"] = max(wanted, default=0)
    before = prompt if parsed.echo else ""
    async for step in engine.generate(prompt, **options):
        yield _part(parsed, step, before)
        before = ""


def _part(parsed: Request, step: Step, before: str) -> Part:
    read = step.prompt_logprobs or []
    tokens = [] if step.logprobs is None else [step.logprobs]
    if parsed.echo and parsed.logprobs is not None:
        tokens = read + tokens
    return Part(
        before + step.text,
        tokens,
        None if parsed.prompt_logprobs is None or not read else read,
        step.finish_reason,
        (step.prompt_tokens, step.new_tokens),
    )


def _usage(used: Iterable[tuple[int, int]]) -> dict[str, int]:
    prompt_tokens, new_tokens = map(sum, zip(*used, strict=True))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }


async def _stream(request: web.Request, engine: EngineThread, parsed: Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    body = _envelope(request, parsed, streamed=True)

    async def send(event: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(event)}\n\n".encode())

    used: list[tuple[int, int]] = []
    try:
        for index, prompt in enumerate(parsed.prompts):
            sent = 0  # characters: offsets of a stream go on from event to event
            async for part in _parts(engine, parsed, prompt):
                choice = _choice(engine, parsed, index, part, streamed=True)
                if choice["logprobs"] and not parsed.chat:
                    choice["logprobs"]["text_offset"] = [sent + n for n in choice["logprobs"]["text_offset"]]
                sent += len(part.text)
                await send({**body, "choices": [choice]})
                if part.finish_reason:
                    used.append(part.used)
        await send({**body, "choices": [], "usage": _usage(used)})
    except (RuntimeError, ValueError) as error:
        await send({"error": {"message": str(error), "type": "server_error", "code": 500}})
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _envelope(request: web.Request, parsed: Request, *, streamed: bool = False) -> dict[str, Any]:
    kind = "chat.completion" if parsed.chat else "text_completion"
    return {
        "id": f"canary-{uuid.uuid4().hex}",
        "object": f"{kind}.chunk" if streamed and parsed.chat else kind,
        "created": int(time.time()),
        "model": request.app[_MODEL],
    }


def _choice(
    engine: EngineThread, parsed: Request, index: int, part: Part, *, streamed: bool = False
) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index, "finish_reason": part.finish_reason, "logprobs": None}
    if parsed.logprobs is not None:
        state = engine.spelling.chat if parsed.chat else engine.spelling.completion
        choice["logprobs"] = state(part.tokens)
    if parsed.chat:
        return {**choice, ("delta" if streamed else "message"): {"role": "assistant", "content": part.text}}
    if part.prompt is not None:
        choice["prompt_logprobs"] = engine.spelling.prompt(part.prompt)
    return {**choice, "text": part.text}


def _error(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error", "code": status}}, status=status
    )

"""A small OpenAI-compatible server in a thread, right by default, whose illness is a function of the test.

python tests/gsm8k/small_server.py PORT DATA.jsonl          the same as a process, for --serve
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

from aiohttp import web

from tests.gsm8k.fault_server import last_question


class SmallServer:
    """`ill(body, number)` may return a response in place of the right answer, None for that one.

    Attributes:
        bodies: every request to a completions path, in order.
        posts: paths of all other POSTs.
        up: whether it runs; while it does not, connections are accepted and closed if `closes`.
    """

    def __init__(
        self, data: Path, *, ill=None, prefix="/v1", paths=("completions", "chat/completions")
    ) -> None:
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        self.answers = {row["question"].strip(): row["answer"] for row in rows}
        self.ill = ill or (lambda body, number: None)
        self.bodies: list[dict] = []
        self.posts: list[str] = []
        self.up = self.closes = True
        self.prefix, self.paths = prefix, paths
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def gold(self, body: dict) -> str:
        """Return the right answer to a request."""
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        return " " + self.answers.get(last_question(prompt), "no such question")

    def fall(self, seconds: float) -> None:
        """Be down for some time."""
        self.up = False
        asyncio.get_running_loop().call_later(seconds, setattr, self, "up", True)

    @web.middleware
    async def _gate(self, request, handler):
        if not self.up and self.closes:
            request.transport.abort()
        return await handler(request)

    async def _models(self, request):
        return web.json_response({"object": "list", "data": [{"id": "small"}]})

    async def _answer(self, request):
        body = await request.json()
        self.bodies.append(body)
        given = self.ill(body, len(self.bodies))
        await asyncio.sleep(float(os.environ.get("SMALL_LATENCY", "0.005")))
        if isinstance(given, web.Response):
            if not self.up and self.closes:
                request.transport.abort()
            return given
        return said(given if isinstance(given, dict) else {"text": self.gold(body)}, chat="messages" in body)

    async def _post(self, request):
        self.posts.append(request.path)
        return web.Response(status=200 if request.path in self.flushes else 404)

    flushes: tuple[str, ...] = ()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._gate], client_max_size=1 << 24)
        app.router.add_get(f"{self.prefix}/models", self._models)
        for path in self.paths:
            app.router.add_post(f"{self.prefix}/{path}", self._answer)
        app.router.add_post("/{anything}", self._post)
        return app

    async def serve(self, port: int = 0) -> web.AppRunner:
        runner = web.AppRunner(self.app(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        self.port = runner.addresses[0][1]
        return runner


def said(message: dict, *, chat: bool) -> web.Response:
    """Return a response that says `text`, `reasoning_content` and `finish` of a message."""
    text, finish = message["text"], message.get("finish", "stop")
    choice = {"index": 0, "finish_reason": finish}
    if chat:
        told = {"role": "assistant", "content": text, "reasoning_content": message.get("reasoning_content")}
        choice["message"] = told
    else:
        choice["text"] = text
    usage = {"prompt_tokens": message.get("prompt_tokens", 700), "completion_tokens": len(text or "") // 4}
    return web.json_response({"id": "x", "choices": [choice], "usage": usage})


def refusal(name: str, message: str = "", status: int = 400) -> web.Response:
    """Return OpenAI's refusal of a field."""
    message = message or f"Unsupported parameter: '{name}' is not supported with this model."
    return web.json_response(
        {"error": {"message": message, "param": name, "code": "unsupported_parameter"}}, status=status
    )


class Thread:
    """A server in a thread of its own, as a context manager."""

    def __init__(self, server: SmallServer) -> None:
        self.server = server
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> SmallServer:
        self.thread.start()
        self.runner = self._do(self.server.serve())
        return self.server

    def __exit__(self, *_) -> None:
        self._do(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _close(self) -> None:
        # Connections that wait are accepted and opened first: a server that is closed in between leaks them.
        for _ in range(5):
            await asyncio.sleep(0.001)
        await self.runner.cleanup()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)


async def main(port: int, data: Path, last: int) -> None:
    def ill(body, number):
        if number == last:
            print("RuntimeError: CUDA error", flush=True)
            os._exit(3)

    await SmallServer(data, ill=ill).serve(port)
    print(f"listening on {port} with {os.environ.get('SMALL_TOKEN')}", flush=True)
    await asyncio.sleep(300)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))

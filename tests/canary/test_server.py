"""The canary's server with an engine that needs no model: the API's forms, streams, refusals, and an engine that dies."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from harness.canary.api_request import BadRequestError, parse
from harness.canary.generate import Step
from harness.canary.server import make_app

WORDS = ["4 ", "+ 5 ", "= 9", "\n#### ", "9"]


@dataclass
class Scripted:
    """Answers every prompt with WORDS, one a step; notes what it was asked and how many ran at once."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)
    most: int = 0
    dies: bool = False
    cancelled: list[int] = field(default_factory=list)

    def add(self, prompt: str, **options: Any) -> int:
        if len(prompt) > 500:
            raise ValueError("the model has 500 positions")
        self.asked.append({"prompt": prompt, **options})
        self.running[len(self.asked)] = 0
        return len(self.asked)

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)
        del self.running[number]

    def step(self) -> list[Step]:
        if self.dies:
            raise IndexError("expert 9 of 8")
        time.sleep(0.002)  # a real step takes longer than a request needs to arrive
        self.most = max(self.most, len(self.running))
        steps = []
        for number, done in list(self.running.items()):
            most = self.asked[number - 1]["max_new_tokens"]
            last = done + 1 == min(len(WORDS), most)
            reason = None if not last else "length" if most < len(WORDS) else "stop"
            steps.append(Step(number, WORDS[done], reason, 7, done + 1))
            self.running[number] = done + 1
            if last:
                del self.running[number]
        return steps


def serve(engine: Scripted, ask: Callable[[TestClient], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with TestClient(TestServer(make_app(engine, "canary-256/test"))) as client:
            return await ask(client)

    return asyncio.run(main())


def post(engine: Scripted, path: str, body: Any) -> tuple[int, Any]:
    async def ask(client: TestClient) -> tuple[int, Any]:
        async with client.post(path, json=body) as response:
            return response.status, await response.json()

    return serve(engine, ask)


def test_completions_answer_every_prompt_with_usage() -> None:
    engine = Scripted()
    status, body = post(
        engine,
        "/v1/completions",
        {"prompt": ["Q1", "Q2"], "max_tokens": 50, "stop": ["\n\n"], "temperature": 0},
    )
    assert status == 200
    assert [c["text"] for c in body["choices"]] == ["".join(WORDS)] * 2
    assert [c["finish_reason"] for c in body["choices"]] == ["stop", "stop"]
    assert body["usage"] == {"prompt_tokens": 14, "completion_tokens": 10, "total_tokens": 24}
    assert engine.asked[0] == {
        "prompt": "Q1",
        "max_new_tokens": 50,
        "stop": ["\n\n"],
        "temperature": 0.0,
        "seed": 0,
    }


def test_chat_puts_questions_and_answers_into_the_trained_form() -> None:
    engine = Scripted()
    messages = [
        {"role": "user", "content": "Question: 1 and 1?\nAnswer:"},
        {"role": "assistant", "content": "#### 2"},
        {"role": "user", "content": "4 and 5?"},
    ]
    status, body = post(engine, "/v1/chat/completions", {"messages": messages, "max_tokens": 2})
    assert status == 200
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "4 + 5 "}
    assert body["choices"][0]["finish_reason"] == "length"
    assert engine.asked[0]["prompt"] == "Question: 1 and 1?\nAnswer: #### 2\n\nQuestion: 4 and 5?\nAnswer:"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_carries_the_same_text_and_ends_with_usage(path: str) -> None:
    async def ask(client: TestClient) -> list[str]:
        body = {"prompt": "Q", "messages": [{"role": "user", "content": "Q"}], "stream": True}
        async with client.post(path, json=body) as response:
            assert response.content_type == "text/event-stream"
            return (await response.text()).split("\n\n")

    lines = [line.removeprefix("data: ") for line in serve(Scripted(), ask) if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    choices = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(c["text"] if "text" in c else c["delta"]["content"] for c in choices) == "".join(WORDS)
    assert [c["finish_reason"] for c in choices] == [None] * 4 + ["stop"]
    assert events[-1]["usage"]["completion_tokens"] == 5


def test_models_and_health() -> None:
    async def ask(client: TestClient) -> tuple[Any, Any]:
        return await (await client.get("/v1/models")).json(), (await client.get("/health")).status

    models, health = serve(Scripted(), ask)
    assert [m["id"] for m in models["data"]] == ["canary-256/test"]
    assert health == 200


def test_requests_that_arrive_together_share_steps() -> None:
    engine = Scripted()

    async def ask(client: TestClient) -> None:
        async def one() -> None:
            (await client.post("/v1/completions", json={"prompt": "Q"})).close()

        await asyncio.gather(*(one() for _ in range(20)))

    serve(engine, ask)
    assert len(engine.asked) == 20
    assert engine.most > 1


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ([], "object"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "Q", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "Q", "max_tokens": True}, "max_tokens"),
        ({"prompt": "Q", "temperature": "hot"}, "temperature"),
        ({"prompt": "Q", "stop": [1]}, "stop"),
        ({"prompt": "Q", "n": 2}, "n must be 1"),
        ({"prompt": "Q" * 501}, "positions"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_with_the_reason(body: Any, word: str) -> None:
    status, answer = post(Scripted(), "/v1/completions", body)
    assert status == 400
    assert word in answer["error"]["message"]


def test_bad_messages_are_refused() -> None:
    for messages in (None, [], [{"role": "user"}], ["hello"]):
        with pytest.raises(BadRequestError):
            parse({"messages": messages}, chat=True)


def test_a_candidate_that_raises_is_a_server_error_now_and_later() -> None:
    """A crash must not look like a wrong answer: `harness gsm8k` calls such a run UNKNOWN (infra)."""

    async def ask(client: TestClient) -> list[tuple[int, str]]:
        found = []
        for _ in range(2):
            async with client.post("/v1/completions", json={"prompt": "Q"}) as response:
                found.append((response.status, (await response.json())["error"]["message"]))
        async with client.get("/health") as response:
            found.append((response.status, (await response.json())["error"]))
        return found

    found = serve(Scripted(dies=True), ask)
    assert [status for status, _ in found] == [500, 500, 503]
    assert all("IndexError: expert 9 of 8" in text for _, text in found)


def test_a_client_that_hangs_up_frees_its_place() -> None:
    engine = Scripted()

    class Endless(Scripted):
        def step(self) -> list[Step]:
            return [Step(number, "x", None, 1, 1) for number in self.running]

    engine = Endless()

    async def ask(client: TestClient) -> None:
        response = await client.post("/v1/completions", json={"prompt": "Q", "stream": True})
        await response.content.readline()
        response.close()
        for _ in range(200):
            if engine.cancelled:
                return
            await asyncio.sleep(0.01)

    serve(engine, ask)
    assert engine.cancelled == [1]

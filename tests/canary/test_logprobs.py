"""Logprobs and echo of the canary's server: every value is that of a plain forward pass over the same tokens."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer

from harness.canary.forward import batch_of
from harness.canary.server import make_app

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
CLOSE = {"rel": 0, "abs": 2e-5}  # float32 sums in another order, of logits up to 30


def post(canary: Any, *requests: tuple[str, Any]) -> list[Any]:
    """The answers to requests that arrive together."""

    async def main() -> list[Any]:
        async with TestClient(TestServer(make_app(canary.engine(), "canary"))) as client:

            async def one(path: str, body: Any) -> Any:
                async with client.post(path, json=body) as response:
                    return await (response.json() if response.status == 200 else response.text())

            return list(await asyncio.gather(*(one(*request) for request in requests)))

    return asyncio.run(main())


def plain(canary: Any, tokens: list[int]) -> torch.Tensor:
    """Logprobs `(len(tokens), vocab)`: row i says what comes after token i."""
    batch = batch_of([tokens], [0])
    return torch.log_softmax(canary.model.forward(batch, canary.model.new_cache(), every_token=True), -1)


@pytest.fixture(scope="module")
def prompt(brief) -> str:
    return f"Question: {brief[0]['question']}\nAnswer:"


@pytest.fixture(scope="module")
def tokens(canary, prompt) -> list[int]:
    return canary.tokenizer.encode(prompt).ids


def test_an_echo_gives_the_prompt_with_its_logprobs(canary, prompt, tokens) -> None:
    (body,) = post(canary, (COMPLETIONS, {"prompt": prompt, "echo": True, "logprobs": 5, "max_tokens": 0}))
    choice = body["choices"][0]
    found, expected = choice["logprobs"], plain(canary, tokens)
    assert (choice["text"], choice["finish_reason"]) == (prompt, "length")
    assert body["usage"]["completion_tokens"] == 0
    assert "".join(found["tokens"]) == prompt
    assert [
        prompt[at:].startswith(t) for at, t in zip(found["text_offset"], found["tokens"], strict=True)
    ] == [True] * len(tokens)
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    for place in range(1, len(tokens)):
        row = expected[place - 1]
        assert found["token_logprobs"][place] == pytest.approx(row[tokens[place]].item(), **CLOSE)
        top = found["top_logprobs"][place]
        likeliest = sorted(top.values(), reverse=True)[:5]
        assert likeliest == pytest.approx(row.topk(5).values.tolist(), **CLOSE)
        assert top[found["tokens"][place]] == found["token_logprobs"][place]
        assert 5 <= len(top) <= 6


def test_an_answer_has_the_logprobs_of_what_was_decoded(canary, prompt, tokens) -> None:
    (body,) = post(canary, (COMPLETIONS, {"prompt": prompt, "logprobs": 2, "max_tokens": 6}))
    found, text = body["choices"][0]["logprobs"], body["choices"][0]["text"]
    assert "".join(found["tokens"]) == text
    assert found["text_offset"][0] == 0
    whole = [*tokens, *canary.tokenizer.encode(text).ids]
    expected = plain(canary, whole)[len(tokens) - 1 : -1]
    assert found["token_logprobs"] == pytest.approx(expected.max(-1).values.tolist(), **CLOSE)
    assert [len(top) for top in found["top_logprobs"]] == [2] * 6


def test_an_echo_goes_on_into_the_answer(canary, prompt, tokens) -> None:
    asked = {"prompt": prompt, "logprobs": 0, "max_tokens": 3}
    alone, echoed = post(canary, (COMPLETIONS, asked), (COMPLETIONS, {**asked, "echo": True}))
    one, both = alone["choices"][0], echoed["choices"][0]
    assert both["text"] == prompt + one["text"]
    assert both["logprobs"]["tokens"][len(tokens) :] == one["logprobs"]["tokens"]
    assert both["logprobs"]["text_offset"][len(tokens)] == len(prompt)
    assert both["logprobs"]["token_logprobs"][len(tokens) :] == pytest.approx(
        one["logprobs"]["token_logprobs"], **CLOSE
    )


def test_the_end_token_is_named(canary, prompt) -> None:
    (body,) = post(canary, (COMPLETIONS, {"prompt": prompt, "logprobs": 1}))
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["logprobs"]["tokens"][-1] == "<|endoftext|>"
    assert len(body["choices"][0]["logprobs"]["tokens"]) == body["usage"]["completion_tokens"]


def test_vllms_prompt_logprobs_are_given_in_completions_and_chat(canary, brief, prompt, tokens) -> None:
    chat = {"messages": [{"role": "user", "content": brief[0]["question"]}], "max_tokens": 1}
    completion, answer = post(
        canary,
        (COMPLETIONS, {"prompt": prompt, "prompt_logprobs": 3, "max_tokens": 1}),
        (CHAT, {**chat, "prompt_logprobs": 3}),
    )
    stated = completion["choices"][0]["prompt_logprobs"]
    assert stated[0] is None
    expected = plain(canary, tokens)
    for place in range(1, len(tokens)):
        own = next(iter(stated[place].items()))
        row = expected[place - 1]
        assert own[0] == str(tokens[place])
        assert own[1]["logprob"] == pytest.approx(row[tokens[place]].item(), **CLOSE)
        assert own[1]["rank"] == int((row > row[tokens[place]]).sum()) + 1
        assert {entry["rank"] for entry in stated[place].values()} >= {1, 2, 3}
    assert "".join(next(iter(entry.values()))["decoded_token"] for entry in stated[1:]) in prompt
    assert [entry and list(entry) for entry in answer["prompt_logprobs"]] == [e and list(e) for e in stated]


def test_chat_states_logprobs_with_their_bytes(canary, brief, prompt) -> None:
    chat = {"messages": [{"role": "user", "content": brief[0]["question"]}], "max_tokens": 4}
    plainly, completion, none = post(
        canary,
        (CHAT, {**chat, "logprobs": True, "top_logprobs": 2}),
        (COMPLETIONS, {"prompt": prompt, "logprobs": 2, "max_tokens": 4}),
        (CHAT, chat),
    )
    content = plainly["choices"][0]["logprobs"]["content"]
    assert (
        bytes(b for one in content for b in one["bytes"]).decode()
        == plainly["choices"][0]["message"]["content"]
    )
    found = completion["choices"][0]["logprobs"]
    assert [one["token"] for one in content] == found["tokens"]
    assert [one["logprob"] for one in content] == pytest.approx(found["token_logprobs"], **CLOSE)
    assert [{t["token"] for t in one["top_logprobs"]} for one in content] == [
        set(t) for t in found["top_logprobs"]
    ]
    assert none["choices"][0]["logprobs"] is None


def test_a_beginning_of_an_answer_is_gone_on_with(canary, brief) -> None:
    question, beginning = {"role": "user", "content": brief[0]["question"]}, brief[0]["answer"][:20]
    messages = [question, {"role": "assistant", "content": beginning}]
    ended, begun = post(
        canary,
        (CHAT, {"messages": messages, "prompt_logprobs": 0, "max_tokens": 1}),
        (CHAT, {"messages": messages, "prompt_logprobs": 0, "max_tokens": 1, "continue_final_message": True}),
    )

    def text(body: Any) -> str:
        return "".join(next(iter(e.values()))["decoded_token"] for e in body["prompt_logprobs"][1:])

    assert text(begun).endswith(f"\nAnswer: {beginning}")
    assert text(ended) == text(begun) + "\n\n"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_stream_carries_the_same_logprobs(canary, brief, prompt, path) -> None:
    wanted = {"logprobs": 1, "echo": True} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 1}
    body = {
        "prompt": prompt,
        "messages": [{"role": "user", "content": brief[0]["question"]}],
        "max_tokens": 3,
    }
    whole = post(canary, (path, body | wanted))[0]["choices"][0]["logprobs"]
    parts = [choice["logprobs"] for choice in stream(canary, path, body | wanted)]
    assert len(parts) == 3
    assert {name: [value for part in parts for value in part[name]] for name in whole} == whole


def stream(canary: Any, path: str, body: Any) -> list[Any]:
    async def main() -> str:
        async with (
            TestClient(TestServer(make_app(canary.engine(), "canary"))) as client,
            client.post(path, json={**body, "stream": True}) as response,
        ):
            return await response.text()

    lines = [line.removeprefix("data: ") for line in asyncio.run(main()).split("\n\n") if line][:-1]
    return [event["choices"][0] for line in lines if (event := json.loads(line))["choices"]]


def test_requests_without_logprobs_are_answered_as_alone_beside_such_with_them(canary, brief, prompt) -> None:
    other = f"Question: {brief[1]['question']}\nAnswer:"
    mixed = post(
        canary,
        (COMPLETIONS, {"prompt": other, "max_tokens": 8}),
        (COMPLETIONS, {"prompt": [prompt, other], "echo": True, "logprobs": 1, "max_tokens": 1}),
        (COMPLETIONS, {"prompt": prompt, "max_tokens": 8, "logprobs": 3}),
    )
    assert mixed[0]["choices"][0]["text"] == canary.answer([other], 8)[0]
    assert mixed[2]["choices"][0]["text"] == canary.answer([prompt], 8)[0]
    assert mixed[0]["choices"][0]["logprobs"] is None
    assert [c["text"].startswith(p) for c, p in zip(mixed[1]["choices"], (prompt, other), strict=True)] == [
        True
    ] * 2


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        (COMPLETIONS, {"logprobs": 21}, "logprobs must be a whole number from 0 to 20, got 21"),
        (COMPLETIONS, {"logprobs": True}, "logprobs must be a whole number"),
        (COMPLETIONS, {"prompt_logprobs": -1}, "prompt_logprobs must be a whole number"),
        (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, "not streamed"),
        (COMPLETIONS, {"max_tokens": 0}, "or echo true"),
        (CHAT, {"logprobs": 5}, "logprobs must be true or false in chat"),
        (CHAT, {"top_logprobs": 5}, "top_logprobs needs logprobs true"),
    ],
)
def test_what_cannot_be_asked_is_refused(canary, path, fields, said) -> None:
    body = {"prompt": "Q", "messages": [{"role": "user", "content": "Q"}], **fields}
    assert said in post(canary, (path, body))[0]


def test_a_model_that_gives_no_number_says_so_in_json(canary, prompt, monkeypatch) -> None:
    weights = {
        name: t * float("nan") if name == "model.norm.weight" else t
        for name, t in canary.model.weights.items()
    }
    monkeypatch.setattr(canary.model, "weights", weights)
    (body,) = post(canary, (COMPLETIONS, {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1}))
    assert set(body["choices"][0]["logprobs"]["token_logprobs"][1:]) == {-9999.0}

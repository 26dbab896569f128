"""Servers whose answers depend on the cache, on the place in a batch or on the length of the prompt. Healthy: test_run.py."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from harness.gsm8k import cache_probe, length_probe, place_probe
from harness.gsm8k.client import Client
from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.length_probe import _longer, _solved, _split
from harness.gsm8k.questions import Asker
from harness.gsm8k.settings import Gsm8kSettings
from harness.gsm8k.task import Question, load_task

WRONG = {"text": " I think so.\n#### 123456789"}
SURPRISE = 0.01


@pytest.fixture
def probe(data):
    """Run one probe on a server, without the run around it; returns its result and what it says."""

    def call(module, server, *more, chat=False):
        task = load_task("gsm8k", dataset=data[0], fewshot=data[1], chat=chat)
        endpoint = parse_base_url(server.url)
        settings = Gsm8kSettings(endpoint=endpoint, out=Path("out"), chat=chat, max_tokens=100)
        others = [task.questions[16:]] if module is not cache_probe else []

        async def ask():
            async with Client(endpoint) as client:
                asker = Asker(client, task, settings, "m")
                return await module.run(asker, task.questions[:16], *others, *more)

        result = asyncio.run(ask())
        return result, module.notes(result, SURPRISE)

    return call


@pytest.mark.parametrize("path", ["/flush_cache", "/reset_prefix_cache"])
def test_a_cached_run_that_differs_is_found_by_a_flush(path, small, probe):
    server, seen = small(), Counter()

    def ill(body, number):
        key = body["prompt"], server.posts.count(path)
        seen[key] += 1
        return WRONG if seen[key] > 1 else None

    server.ill, server.flushes = ill, (path,)
    cache, said = probe(cache_probe, server)
    assert (cache["flush"], cache["second"]["lost"], cache["flushed"]["lost"]) == (path[1:], 16, 0)
    (note,) = said
    assert note.startswith("accuracy changes with the cache: 0 of 16 right from the cache, 16 the first time")


def test_a_place_that_is_always_wrong_is_found(small, probe):
    """The last row of a full batch of 16."""
    places, said = probe(place_probe, small(lambda body, number: WRONG if number % 16 == 0 else None))
    assert [(p["place"], p["right"]) for p in places["places"]] == [(5, 8), (10, 8), (15, 0)]
    (note,) = said
    assert note.startswith(
        "accuracy changes with the place in a batch: 0 of 8 right at place 16 of 16, 8 at the first"
    )


@pytest.mark.parametrize("chat", [False, True])
def test_answers_that_break_behind_a_long_prompt_are_found(chat, small, probe):
    def size(body):
        return sum(len(m["content"]) for m in body["messages"]) if chat else len(body["prompt"])

    def ill(body, number):
        text = server.gold(body) if size(body) < 5500 * 3 else WRONG["text"]
        return {"text": text, "prompt_tokens": size(body) // 3}

    server = small(ill)
    lengths, said = probe(length_probe, server, 8000, chat=chat)
    assert [lengths[kind]["right"] for kind in ("short", "plain", "long")] == [8, 8, 0]
    tokens = lengths["long"]["tokens"]
    assert 8000 <= tokens <= 8500
    (note,) = said
    assert note.startswith(
        f"accuracy changes with the length of the prompt: 0 of 8 right with {tokens:,} tokens, 8 with"
    )
    lengths, said = probe(length_probe, server, 4000, chat=chat)
    assert said == []
    assert 4000 <= lengths["long"]["tokens"] < 4500


def test_a_prompt_that_is_too_long_for_the_server_is_said(small, probe):
    def ill(body, number):
        if len(body["prompt"]) > 9000:
            return web.json_response(
                {"error": {"message": "maximum context length is 4096 tokens"}}, status=400
            )
        return None

    (note,) = probe(length_probe, small(ill), 8000)[1]
    assert note.startswith("no long prompt of")
    assert (
        "maximum context length is 4096 tokens; --max-tokens and --num-fewshot make requests smaller" in note
    )


def test_longer_prompts_hold_no_answer_to_their_own_question():
    prompt = "Question: one?\nAnswer: 1\n\nQuestion: two?\nAnswer:"
    asked = Question(0, "two?", "2", prompt)
    assert _split(prompt, "two?") == ("Question: one?\nAnswer: 1\n\n", "Question: two?\nAnswer:")
    blocks = ["Question: two?\nAnswer: 2\n\n", "Question: three?\nAnswer: 3\n\n"]
    longer = _longer(prompt, asked, blocks, 200)
    assert longer.endswith(prompt)
    assert longer.count("two?") == 1
    assert 200 <= len(longer) < 240
    assert _longer(prompt, asked, [], 200) == prompt


def test_a_task_without_examples_is_made_longer_by_solved_questions():
    asked = Question(0, "two?", "2", "two?", [{"role": "user", "content": "two?"}])
    assert _solved("two?", asked) == "two? 2\n\n"
    assert _solved(asked.messages, asked) == [*asked.messages, {"role": "assistant", "content": "2"}]

"""A server that restarts costs no answer, whatever it and the proxy before it say meanwhile; a bad question costs seconds."""

from __future__ import annotations

import asyncio

import pytest
import tenacity
from aiohttp import web

from harness.gsm8k import retrying
from harness.gsm8k.client import Client, Limits
from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.errors import Kind
from tests.gsm8k.small_server import said

DOWN_S = 0.8  # some 25 back-offs of these tests, where four attempts were once all

# What a request meets while the backend restarts.
RESTARTS = {
    "closed at once": None,
    "500": lambda: web.json_response({"error": "the engine is dead"}, status=500),
    "500 without a word": lambda: web.Response(status=500),
    "502": lambda: web.Response(status=502),
    "503": lambda: web.Response(status=503),
    "404": lambda: web.Response(status=404, text="default backend - 404"),
    "429": lambda: web.Response(status=429),
    "a page of the proxy": lambda: web.Response(text="<html>starting</html>", content_type="text/html"),
    "an error in a 200": lambda: web.json_response({"error": {"message": "no worker"}}),
    "no choices": lambda: web.json_response({"choices": [], "usage": {}}),
    "half an answer": lambda: web.Response(text='{"choices": [{"te', content_type="application/json"),
    "aborted answers": lambda: said({"text": "She has", "finish": "abort"}, chat=False),
}


def some(names, short):
    """All names, those that are not of the short ones in make test-all only."""
    return [n if n in short else pytest.param(n, marks=pytest.mark.long) for n in names]


@pytest.mark.parametrize("name", some(RESTARTS, {"closed at once", "404", "aborted answers"}))
def test_a_restart_in_mid_run_costs_no_answer(name, small, run_here):
    server = small()

    def ill(body, number):
        if number == 40:
            server.fall(DOWN_S)
        if server.up:
            return None
        return web.Response() if RESTARTS[name] is None else RESTARTS[name]()

    server.ill, server.closes = ill, RESTARTS[name] is None
    stage = run_here(server.url, concurrency=16)
    assert (stage["answered"], stage["unanswered"], stage["correct_strict"]) == (64, 0, 64)
    assert sum(e["count"] for e in stage["errors"]) > 4
    assert sum(e["gave_up"] for e in stage["errors"]) == 0
    assert stage["requests"]["sent"] == stage["requests"]["answered"] + stage["requests"]["failed"]


@pytest.mark.parametrize("concurrency", [1, pytest.param(16, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", some([n for n in RESTARTS if n not in {"502", "503", "429"}], {"closed at once", "500"})
)
def test_a_question_that_always_fails_does_not_wait_for_a_restart(name, concurrency, small, run_here):
    """The retry time is ten minutes: only a server that answers others can end this early."""
    server = small()

    def ill(body, number):
        if "Ada has 20 " not in body["prompt"].rpartition("Question: ")[2]:
            return None
        if RESTARTS[name] is None:
            server.fall(0)
            return web.Response()
        return RESTARTS[name]()

    server.ill = ill
    stage = run_here(
        server.url, concurrency=concurrency, retry_seconds=600, max_unanswered=0.1, min_accuracy=0.8
    )
    assert (stage["verdict"], stage["answered"], stage["unanswered"]) == ("PASS", 63, 1)
    (lost,) = [s for s in stage["samples"] if s["error"]]
    assert lost["index"] == 10
    assert lost["attempts"] <= 16


@pytest.mark.parametrize("name", some(["500", "an error in a 200", "404"], {"500"}))
def test_a_server_that_never_answered_is_not_waited_for(name, small, run_here):
    server = small(lambda body, number: RESTARTS[name]())
    stage = run_here(server.url, concurrency=4, retry_seconds=600)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
    assert stage["answered"] == 0


def test_one_control_request_serves_all_that_wonder(small, monkeypatch):
    monkeypatch.setattr(retrying, "BACKOFF", tenacity.wait_fixed(0.05))
    server = small()

    async def ask() -> list:
        async with Client(parse_base_url(server.url), limits=Limits(10, 600)) as client:
            await client.ask("completions", b'{"prompt": "Question: good"}')
            server.ill = lambda body, number: web.Response(status=500) if "bad" in body["prompt"] else None
            return await asyncio.gather(*(client.ask("completions", b'{"prompt": "bad"}') for _ in range(8)))

    exchanges = asyncio.run(ask())
    assert {e.error.kind for e in exchanges} == {Kind.BROKEN}
    assert {e.attempts for e in exchanges} == {4}
    assert 1 <= sum("good" in body["prompt"] for body in server.bodies) - 1 < 8


def test_the_run_ends_when_the_retry_time_is_over(small, run_here):
    server = small()

    def ill(body, number):
        if number == 40:
            server.fall(60)

    server.ill = ill
    stage = run_here(server.url, concurrency=8, retry_seconds=0.3)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
    assert stage["correct_strict"] == stage["answered"] > 0
    assert stage["errors"][0]["kind"] == "lost"

"""`--logprobs` in a run: against a second live server, against a recording, and making one."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.settings import Gsm8kSettings
from harness.verdict import UsageError

TOKEN = re.compile(r"\s*\S+")


def logprobs(text: str, shift: float) -> dict:
    """Of every word: 0.9 or so for itself, what is left for three others; all by a hash of the place, plus a shift."""
    tokens, rows = TOKEN.findall(text), []
    for place, token in enumerate(tokens):
        drawn = random.Random(f"{token} {place}")
        share = 0.6 + 0.3 * drawn.random() - shift
        others = {f"{token}{i}": math.log((1 - share) / 4) for i in range(3)}
        rows.append({token: math.log(share), **others})
    own = [row[token] for token, row in zip(tokens, rows, strict=True)]
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": rows, "text_offset": [-1] * len(tokens)}


@pytest.fixture
def serve_logprobs(write_data) -> Iterator[Callable[..., tuple[str, dict]]]:
    """Start a server that knows the answers of some questions; returns its URL and what a run on it needs."""
    test, train = write_data(40)
    answers = {row["question"]: row["answer"] for row in map(json.loads, test.read_text().splitlines())}
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runners: list[web.AppRunner] = []

    async def start(shift: float, gives: bool) -> int:
        async def complete(request: web.Request) -> web.Response:
            body = await request.json()
            prompt = body["prompt"]
            asked = prompt.rpartition("Question: ")[2].partition("\nAnswer:")[0]
            text = (prompt if body.get("echo") else "") + f" {answers[asked]}"
            stated = logprobs(text, shift) if body.get("logprobs") and gives else None
            used = {"prompt_tokens": len(TOKEN.findall(prompt)), "completion_tokens": 9}
            choice = {"text": text, "finish_reason": "stop", "logprobs": stated}
            return web.json_response({"choices": [choice], "usage": used})

        async def models(_: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "m"}]})

        app = web.Application()
        app.add_routes([web.post("/v1/completions", complete), web.get("/v1/models", models)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner.addresses[0][1]

    def call(shift: float = 0.0, *, gives: bool = True) -> tuple[str, dict]:
        port = asyncio.run_coroutine_threadsafe(start(shift, gives), loop).result(10)
        return f"http://127.0.0.1:{port}/v1", {"dataset": test, "fewshot": train, "sweep": False}

    yield call
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.mark.parametrize(("shift", "label"), [(0.0, "NOT DEAD"), (0.2, "FAIL (logprobs)")])
def test_a_wave_and_the_logprobs_of_two_servers_judge_in_seconds(serve_logprobs, run_here, shift, label):
    (one, data), (other, _) = serve_logprobs(shift), serve_logprobs()
    stage = run_here(one, against=other, mode="smoke", logprobs=True, **data)
    word = stage["verdict"] + (f" ({stage['qualifier']})" if stage["qualifier"] else "")
    assert word == label, stage["reason"]
    assert stage["answered"] == 32
    assert stage["decisions"]["logprobs"]["word"] == ("PASS" if shift == 0 else "FAIL")
    assert stage["logprobs"]["forms"] == {"reference": "echo, top 20", "answer": "answer, top 20"}
    assert stage["errors"] == []


def test_a_full_run_names_both_comparisons(serve_logprobs, run_here):
    (one, data), (other, _) = serve_logprobs(0.2), serve_logprobs()
    stage = run_here(one, against=other, logprobs=True, max_kl=0.5, max_drop=0.2, **data)
    assert stage["verdict"] == "PASS", stage["reason"]
    assert "no further than allowed: KL 0." in stage["reason"]
    assert "a drop of 20 points is excluded" in stage["reason"]


def test_a_server_is_compared_with_what_was_recorded_of_another(serve_logprobs, run_here, tmp_path):
    (one, data), (other, _) = serve_logprobs(0.2), serve_logprobs()
    recorded = run_here(other, logprobs=True, out=tmp_path / "before", **data)
    assert recorded["decisions"]["logprobs"] is None
    kept = {"logprobs": True, "logprobs_baseline": tmp_path / "before" / "logprobs.json", **data}
    assert run_here(other, mode="smoke", **kept)["verdict"] == "NOT DEAD"
    assert run_here(one, mode="smoke", **kept)["qualifier"] == "logprobs"
    with pytest.raises(UsageError, match="recorded with another prompts; record again"):
        run_here(one, mode="smoke", num_fewshot=2, **kept)


def test_servers_that_give_no_logprobs_are_unknown_with_the_reason(serve_logprobs, run_here):
    (one, data), (other, _) = serve_logprobs(), serve_logprobs(gives=False)
    stage = run_here(one, against=other, mode="smoke", logprobs=True, **data)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "logprobs")
    assert "the other gives none (echo: the server gives no logprobs" in stage["reason"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_kl": 0.1}, "--logprobs-baseline and --max-kl belong to --logprobs"),
        ({"logprobs": True, "max_kl": 0.0}, "--max-kl must be a number of nats per token above 0"),
        (
            {"logprobs": True, "logprobs_baseline": Path("x"), "against": "http://b:1/v1"},
            "compare with one of them",
        ),
        ({"mode": "smoke", "against": "http://b:1/v1"}, "--mode smoke without --logprobs"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    if "against" in options:
        options = {**options, "against": parse_base_url(options["against"])}
    with pytest.raises(UsageError, match=said):
        Gsm8kSettings(parse_base_url("http://a:1/v1"), Path("out"), **options).check()


def test_a_recording_judges_a_full_run_and_no_preset_of_another_protocol_is_in_its_way(
    serve_logprobs, run_here, tmp_path
):
    (one, data), (other, _) = serve_logprobs(), serve_logprobs(0.2)
    run_here(one, mode="smoke", logprobs=True, out=tmp_path / "before", **data)
    kept = {"logprobs": True, "logprobs_baseline": tmp_path / "before" / "logprobs.json", **data}
    stage = run_here(one, preset="gpt-oss", **kept)
    assert stage["verdict"] == "PASS", stage["reason"]
    assert "is judged by the comparison" in stage["reason"]
    assert run_here(other, min_accuracy=0.5, **kept)["qualifier"] == "logprobs"
    with pytest.raises(UsageError, match="recorded with another extra_body; record again"):
        run_here(one, extra_body={"top_k": 1}, **kept)

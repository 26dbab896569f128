"""Asking servers for logprobs: the forms of OpenAI, vLLM and SGLang, what is tried, and what is said where there are none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness.gsm8k.client import Client
from harness.gsm8k.credentials import parse_base_url
from harness.gsm8k.dialect import Dialect
from harness.gsm8k.logprobs.ask import (
    Form,
    LogprobError,
    LogprobServer,
    read_answer,
    read_echo,
    read_prompt,
    spelled,
)
from harness.gsm8k.logprobs.divergence import Position
from harness.gsm8k.logprobs.passes import Forms, Live, Passes, Recording, read_recording
from harness.gsm8k.payload import Reply
from harness.gsm8k.task import Question, load_task
from harness.verdict import UsageError

TOKENS = ["Q", ":", " 1", " and", " 1", "\n", "A", ":", " It", " is", " 2"]
QUESTION = Question(
    3,
    "1 and 1",
    "2",
    prompt="Q: 1 and 1\nA:",
    messages=[{"role": "user", "content": "1 and 1"}],
    reference=" It is 2",
)


def completion(tokens: list[str], *, first: int = 0, offsets: bool = True) -> dict[str, Any]:
    """`logprobs` as vLLM gives them, or with the -1 of SGLang."""
    own = [None if i < first else -0.1 for i in range(len(tokens))]
    top = [None if i < first else {t: -0.1, "x": -3.0} for i, t in enumerate(tokens)]
    starts = [sum(map(len, tokens[:i])) if offsets else -1 for i in range(len(tokens))]
    return {"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": starts}


def reply(prompt_tokens: int | None = None, **choice: Any) -> Reply:
    outside = {"prompt_logprobs": choice.pop("outside")} if "outside" in choice else {}
    return Reply("", prompt_tokens=prompt_tokens, data={"choices": [choice], **outside})


@pytest.mark.parametrize("offsets", [True, False])
def test_an_echo_is_read_up_to_the_end_of_the_prompt(offsets):
    stated = completion([*TOKENS, " end"], first=1, offsets=offsets)
    found = read_echo(reply(len(TOKENS), logprobs=stated))
    assert [p.token for p in found] == TOKENS[1:]
    assert found[0].top == {":": -0.1, "x": -3.0}


@pytest.mark.parametrize("outside", [False, True])
def test_vllms_prompt_logprobs_are_read_in_completions_and_chat(outside):
    stated = [
        None,
        {
            "7": {"logprob": -4.0, "rank": 9, "decoded_token": ":"},
            "1": {"logprob": -0.1, "rank": 1, "decoded_token": "x"},
        },
    ]
    found = read_prompt(reply(**({"outside": stated} if outside else {"prompt_logprobs": stated})))
    assert found == [Position(":", {"x": -0.1, ":": -4.0})]
    assert found[0].likeliest == "x"


def test_an_answer_is_read_in_completions_and_chat():
    top = [{"token": "x", "logprob": -3.0, "bytes": []}]
    content = [{"token": " 2", "logprob": -0.1, "bytes": [], "top_logprobs": top}]
    assert read_answer(reply(logprobs={"content": content})) == read_answer(
        reply(logprobs=completion([" 2"]))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" It is 2", [" It", " is", " 2"]), ("is 2 ", [" is", " 2"]), (" 2", [" 2"])],
)
def test_the_last_tokens_that_spell_the_reference_answer_are_taken(text, expected):
    positions = [Position(token, {}) for token in [*TOKENS, "\n"]]
    assert [p.token for p in spelled(positions, text)] == expected
    with pytest.raises(LogprobError, match="do not spell"):
        spelled(positions, "It was 2")


@pytest.mark.parametrize(
    "bad",
    [
        {"logprobs": None},
        {"logprobs": {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": None}},
        {"logprobs": {"content": [{"token": "a"}]}},
        {"logprobs": {"tokens": ["a"], "token_logprobs": ["low"], "top_logprobs": [{}]}},
        {"logprobs": "yes"},
    ],
)
def test_anything_else_is_an_error_that_says_so(bad):
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"choices": [{"text": "a", **bad}], "usage": {"prompt_tokens": 3}})

    with pytest.raises(LogprobError, match=r"gives no logprobs|not known"):
        ask(answer, lambda server: server.ask(QUESTION, Form("answer", 5), 4))


def ask(answer: Any, use: Any, *, chat: bool = False) -> Any:
    """What `use` returns for a server that answers every POST with `answer`."""

    async def main() -> Any:
        app = web.Application()
        app.router.add_post("/v1/{path:.*}", answer)
        async with TestServer(app) as server:
            endpoint = parse_base_url(f"http://127.0.0.1:{server.port}/v1")
            async with Client(endpoint) as client:
                dialect = Dialect({"chat_template_kwargs": {"thinking": False}})
                return await use(LogprobServer(client, "m", chat=chat, stop=("\n\n",), dialect=dialect))

    return asyncio.run(main())


def vllm_like(refuse: Any) -> tuple[Any, list[dict[str, Any]]]:
    """A server that refuses what `refuse` says, and the bodies that it was sent."""
    bodies: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        bodies.append({"path": request.path, **body})
        if said := refuse(body):
            return web.json_response({"error": {"message": said}}, status=400)
        echoed = completion([*TOKENS, " ."], first=1) if body.get("echo") else completion([" It"])
        choice: dict[str, Any] = {"text": "", "index": 0, "logprobs": echoed}
        if "messages" in body:
            entry = {"token": " It", "logprob": -0.1, "bytes": [], "top_logprobs": []}
            choice = {"message": {"content": " It"}, "logprobs": {"content": [entry]}}
        stated = [None, *({"7": {"logprob": -0.1, "rank": 1, "decoded_token": t}} for t in TOKENS[1:])]
        found = {"choices": [choice], "usage": {"prompt_tokens": len(TOKENS), "completion_tokens": 1}}
        return web.json_response(found | ({"prompt_logprobs": stated} if "prompt_logprobs" in body else {}))

    return answer, bodies


def prepared(refuse: Any, *, chat: bool = False) -> tuple[Forms, list[dict[str, Any]], Passes]:
    answer, bodies = vllm_like(refuse)

    async def use(server: LogprobServer) -> tuple[Forms, Passes]:
        live = Live(server, max_tokens=5)
        forms = await live.prepare(QUESTION)
        return forms, (await live.passes([QUESTION]))[QUESTION.index]

    forms, passes = ask(answer, use, chat=chat)
    return forms, bodies, passes


def test_an_echo_with_twenty_tokens_is_tried_first():
    forms, bodies, passes = prepared(lambda body: "")
    assert (forms.reference, forms.answer, forms.refused) == (Form("echo", 20), Form("answer", 20), "")
    assert bodies[0]["prompt"] == "Q: 1 and 1\nA: It is 2"
    assert {"echo", "logprobs", "max_tokens", "temperature", "chat_template_kwargs"} <= bodies[0].keys()
    assert [p.token for p in passes.first["reference"]] == [" It", " is", " 2"]
    assert passes.first == passes.second
    assert [b["max_tokens"] for b in bodies if not b.get("echo")] == [1, 5, 5]
    assert len(bodies) == 2 + 2 * 2


def test_what_the_server_refuses_is_asked_in_another_form():
    few = prepared(lambda body: "at most 5" if (body.get("logprobs") or 0) > 5 else "")[0]
    assert (few.reference, few.answer) == (Form("echo", 5), Form("answer", 5))
    assert "at most 5" in few.refused
    no_echo = prepared(lambda body: "no echo" if body.get("echo") else "")[0]
    assert no_echo.reference == Form("prompt_logprobs", 20)


def test_chat_asks_with_the_answer_begun():
    forms, bodies, passes = prepared(lambda body: "", chat=True)
    assert (forms.reference, forms.answer) == (Form("prompt_logprobs", 20), Form("answer", 20))
    begun = next(b for b in bodies if "prompt_logprobs" in b)
    assert begun["path"] == "/v1/chat/completions"
    assert begun["messages"][-1] == {"role": "assistant", "content": "It is 2"}
    assert (begun["continue_final_message"], begun["add_generation_prompt"]) == (True, False)
    assert [p.token for p in passes.first["reference"]] == [" It", " is", " 2"]
    assert passes.first["answer"] == [Position(" It", {" It": -0.1})]


def test_a_server_without_logprobs_says_which_forms_were_refused():
    forms, _, passes = prepared(lambda body: "logprobs are off")
    assert forms.given == {}
    assert "echo: HTTP 400" in forms.refused
    assert "answer: HTTP 400" in forms.refused
    assert passes == Passes()


def test_a_recording_is_read_as_it_was_written(tmp_path):
    asked = {"reference": [Position(" It", {" It": -0.1234567, "x": -3.0})]}
    forms = Forms(Form("echo", 20))
    Recording({"model": "m"}, forms, {3: Passes(asked, asked), 4: Passes(error="HTTP 500")}).write(
        tmp_path / "r.json"
    )
    found = read_recording(tmp_path / "r.json")
    assert (found.about, found.forms) == ({"model": "m"}, forms)
    assert found.found[3].first == {"reference": [Position(" It", {" It": -0.123457, "x": -3.0})]}
    other = Question(9, "", "")
    passes = asyncio.run(found.passes([QUESTION, other]))
    assert (passes[3].error, passes[9].error) == ("", "not in the recording")
    for bad in ("{", "[]", '{"about": {}, "forms": {"echo": 5}, "questions": {}}'):
        (tmp_path / "r.json").write_text(bad)
        with pytest.raises(UsageError, match="expected recorded logprobs"):
            read_recording(tmp_path / "r.json")


def test_a_tasks_questions_hold_the_whole_reference_answer_as_it_follows_the_prompt():
    question = load_task("gsm_canary").questions[0]
    assert question.prompt.endswith("\nAnswer:")
    assert question.reference.startswith(" The puzzles cost 9 * 24")
    assert question.reference.endswith(f"#### {question.expected}")

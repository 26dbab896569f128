"""Servers that refuse a field of the request: it is sent otherwise, and that is said; or the run says what to do."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from harness.gsm8k.dialect import Dialect, refuses
from harness.gsm8k.errors import Kind, RequestError
from harness.gsm8k.hints import hint
from tests.gsm8k.small_server import refusal


def refusing(*names, message=""):
    """A server that takes none of these fields."""

    def ill(body, number):
        return next((refusal(name, message) for name in names if name in body), None)

    return ill


def test_max_completion_tokens_is_sent_where_max_tokens_is_refused(small, run_here):
    server = small(refusing("max_tokens"))
    stage = run_here(server.url, chat=True, min_accuracy=0.8)
    assert (stage["verdict"], stage["correct_strict"], stage["errors"]) == ("PASS", 64, [])
    assert stage["server"]["refused"] == ["max_tokens"]
    assert "the server refuses max_tokens: max_completion_tokens is sent instead" in stage["notes"]
    taken = [b for b in server.bodies if "max_tokens" not in b]
    assert {b["max_completion_tokens"] for b in taken} == {1024, 64}  # 64: the sanity check
    assert len(server.bodies) - len(taken) <= 34, "each request in flight is refused once, none later"
    assert stage["requests"]["sent"] == stage["requests"]["answered"] + stage["requests"]["failed"]


def test_stop_strings_are_applied_here_where_the_server_takes_none(small, run_here):
    def ill(body, number):
        if "stop" in body:
            return refusal("stop")
        return {"text": f"{server.gold(body)}\n\nQuestion: what else?\nAnswer: #### 1", "finish": "length"}

    server = small(ill)
    stage = run_here(server.url, min_accuracy=0.8)
    assert (stage["verdict"], stage["correct_strict"], stage["correct_flexible"]) == ("PASS", 64, 64)
    assert not any("Question:" in sample["answer"] for sample in stage["samples"])
    assert stage["finish_reasons"] == {"stop": 64}
    assert any("stop strings are applied to the answer here" in note for note in stage["notes"])


def test_a_refused_temperature_is_left_out_and_said(small, run_here):
    message = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
    server = small(refusing("temperature", message=message))
    stage = run_here(server.url, chat=True, min_accuracy=0.8)
    assert (stage["verdict"], stage["correct_strict"]) == ("PASS", 64)
    assert any("answers may change from run to run" in note for note in stage["notes"])


def test_several_refusals_are_learnt_one_after_the_other_in_streams_too(small, run_here):
    server = small(refusing("stream_options", "temperature", "stop", "max_tokens"))
    stage = run_here(server.url, stream=True, concurrency=4, questions=8)
    assert (stage["answered"], stage["correct_strict"]) == (8, 8)
    assert sorted(stage["server"]["refused"]) == ["max_tokens", "stop", "stream_options", "temperature"]


def test_a_field_that_the_user_asked_for_is_not_dropped(small, run_here):
    server = small(refusing("temperature", "top_k"))
    for extra, named in (({"temperature": 0.6}, "temperature"), ({"top_k": 1}, "top_k")):
        stage = run_here(server.url, extra_body=extra)
        assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
        assert stage["reason"].endswith(f"; --extra-body holds {named} ({stage['errors'][0]['count']} times)")


@pytest.mark.parametrize("chat", [False, True])
def test_a_server_of_the_other_interface_is_named(chat, small, run_here):
    server = small(paths=["completions" if chat else "chat/completions"])
    stage = run_here(server.url, chat=chat)
    assert (stage["verdict"], stage["qualifier"], stage["answered"]) == ("UNKNOWN", "infra", 0)
    assert ("leave out --chat" if chat else "give --chat") in stage["reason"]


def test_a_model_without_a_chat_template_is_named(small, run_here):
    message = (
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template "
        "if the tokenizer does not define one."
    )
    server = small(lambda body, number: refusal("messages", message))
    stage = run_here(server.url, chat=True)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
    assert "the model has no chat template: leave out --chat" in stage["reason"]


def test_a_refusal_of_everything_costs_no_more_than_its_budget(small, run_here):
    server = small(lambda body, number: web.json_response({"detail": "no"}, status=400))
    stage = run_here(server.url, concurrency=4)
    assert stage["qualifier"] == "infra"
    assert len(server.bodies) <= 10


def openai(param, message, code="unsupported_parameter"):
    return json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
    )


def fastapi(place, kind, message):
    return json.dumps(
        {"detail": [{"type": kind, "loc": ["body", place], "msg": message, "input": {"stop": 1}}]}
    )


REFUSALS = [
    ("max_tokens", openai("max_tokens", "Unsupported parameter: 'max_tokens' is not supported with this model.")),
    ("temperature", openai("temperature", "Only the default (1) value is supported", "unsupported_value")),
    ("stop", fastapi("stop", "extra_forbidden", "Extra inputs are not permitted")),
    ("stop", "{'error': \"Unrecognized request argument supplied: stop\"}"),
    ("stop", json.dumps({"error": {"message": "`stop` may hold at most 2 strings", "param": None}})),
    ("temperature", json.dumps({"error": "Input validation error: `temperature` must be strictly positive"})),
    ("stream_options", json.dumps({"message": "Unknown field: stream_options"})),
    ("max_tokens", json.dumps({"error": {"message": "[{'type': 'extra_forbidden', 'loc': ('body', 'max_tokens'), 'msg': 'Extra inputs are not permitted'}]"}})),
]  # fmt: skip
OTHERS = [
    ("max_tokens", openai("max_tokens", "max_tokens is too large: 1024. This model's maximum context length is 512", None)),
    ("max_tokens", json.dumps({"error": {"message": "max_tokens must be at most 512"}})),
    ("max_tokens", json.dumps({"error": {"message": "unsupported parameter: max_completion_tokens"}})),
    ("temperature", openai("top_p", "temperature and top_p: unsupported together")),
    ("stop", fastapi("prompt", "missing", "Field required")),
    ("stop", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), REFUSALS)
def test_refusals_of_a_field_are_read_from_every_shape_of_error(name, text):
    assert refuses(text, name)
    fields = {"prompt": "p", "max_tokens": 9, "temperature": 0, "stop": ["Q"], "stream_options": {}}
    dialect = Dialect()
    assert dialect.learn(RequestError(Kind.REJECTED, "no", status=400, said=text), fields)
    assert dialect.refused == [name]


@pytest.mark.parametrize(("name", "text"), OTHERS)
def test_other_errors_that_name_a_field_refuse_nothing(name, text):
    assert not refuses(text, name)


def test_a_field_under_its_new_name_is_not_tried_a_third_time():
    dialect, fields = Dialect(), {"prompt": "p", "max_tokens": 9}
    first = RequestError(Kind.REJECTED, "no", status=400, said="max_tokens is not supported")
    sent = dialect.other(first, dialect.write(fields), fields, "completions")
    assert json.loads(sent) == {"prompt": "p", "max_completion_tokens": 9}
    second = RequestError(Kind.REJECTED, "no", status=400, said="max_completion_tokens is not supported")
    assert dialect.other(second, sent, fields, "completions") is None


@pytest.mark.parametrize(
    ("status", "text", "path", "expected"),
    [
        (404, '{"detail": "Not Found"}', "completions", "give --chat"),
        (404, '{"detail": "Not Found"}', "chat/completions", "leave out --chat"),
        (404, "This is a chat model, use v1/chat/completions", "completions", "takes chat only"),
        (404, "The model `x` does not exist.", "completions", ""),
        (401, "no", "completions", "--api-key-env"),
        (400, "This model's maximum context length is 512 tokens", "completions", "--max-tokens"),
        (400, "no", "completions", ""),
    ],
)
def test_hints_say_what_to_do(status, text, path, expected):
    found = hint(RequestError(Kind.REJECTED, "no", status=status, said=text), path, {})
    assert (expected in found) if expected else found == ""


def test_a_hint_survives_a_long_message():
    error = RequestError(Kind.REJECTED, "x" * 1000, status=404).again(hint="give --chat")
    assert str(error).endswith("...; give --chat")
    assert len(str(error)) <= 240

"""`--extra-body`: sent with every request, part of what a journal and a record say, and no place for secrets."""

from __future__ import annotations

import json

import pytest

from harness.gsm8k.credentials import clean_command, clean_fields, clean_shell, field_secrets, shell_secrets
from harness.gsm8k.extra_body import parse_extra_body
from harness.verdict import UsageError

THINKING = '{"temperature": 0.6, "chat_template_kwargs": {"enable_thinking": true}}'


def test_the_fields_are_in_every_request_and_in_the_record(small, cli):
    server = small()
    done = cli(server.url, "--questions", "8", "--chat", "--min-accuracy", "0.5", "--extra-body", THINKING)
    assert done.code == 0, done.err
    assert all({**body, **json.loads(THINKING)} == body for body in server.bodies)
    assert done.stage["settings"]["extra_body"] == json.loads(THINKING)
    asked = len(server.bodies)
    again = cli(
        server.url,
        "--questions",
        "8",
        "--chat",
        "--min-accuracy",
        "0.5",
        "--extra-body",
        THINKING,
        "--resume",
    )
    assert (again.code, len(server.bodies)) == (0, asked)
    other = cli(server.url, "--questions", "8", "--chat", "--resume")
    assert other.code == 64
    assert "belongs to another run" in other.err


def test_a_secret_field_is_sent_and_written_nowhere(small, cli, tmp_path):
    def ill(body, number):
        return {"text": f"{server.gold(body)} (for {body['user_key']})"}

    server = small(ill)
    extra = '{"user_key": "pl4nted-key", "nested": [{"hf_token": "pl4nted-token"}], "max_new": 1}'
    done = cli(server.url, "--questions", "4", "--extra-body", extra, out=tmp_path / "out")
    assert server.bodies[0]["nested"] == [{"hf_token": "pl4nted-token"}]
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    written = "".join(p.read_text(encoding="utf-8") for p in files) + done.out + done.err
    assert "pl4nted" not in written
    assert "(for [hidden])" in written
    assert done.stage["settings"]["extra_body"]["nested"] == [{"hf_token": "[hidden]"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "--extra-body is not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"max_tokens": 9}', "must not hold 'max_tokens': --max-tokens N sets it"),
        ('{"messages": []}', "must not hold 'messages'"),
        ('{"n": 2}', "--repeat N asks again"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_extra_body(text)


def test_no_option_is_no_field():
    assert parse_extra_body(None) == {}


def test_secret_names_are_told_from_fields_of_models():
    fields = {"api_key": "a1", "apiKey": "b2", "token": "c3", "x": [{"password": "d4"}], "max_tokens": "e5"}
    fields |= {"bad_words_token": "f6", "keyword": "g7", "authorization": "h8", "hf-token": "i9"}
    assert field_secrets(fields) == ["a1", "b2", "c3", "d4", "h8", "i9"]
    assert clean_fields(fields)["max_tokens"] == "e5"
    assert clean_fields([1, "x", None]) == [1, "x", None]


SHELL = "HF_TOKEN=pl4nted1 vllm serve m --api-key pl4nted2 --hf-token='pl4nted 3' --max-num-batched-tokens 8192 http://u:pl4nted4@h"


def test_a_served_command_is_written_without_its_secrets():
    assert shell_secrets(SHELL) == ["pl4nted1", "pl4nted2", "pl4nted 3", "u:pl4nted4"]
    cleaned = clean_shell(SHELL)
    assert "pl4nted" not in cleaned
    assert "--max-num-batched-tokens 8192" in cleaned
    assert clean_command(["--serve", SHELL]) == ["--serve", cleaned]
    assert clean_command([f"--serve={SHELL}"]) == [f"--serve={cleaned}"]
    assert clean_command(["--extra-body", '{"key": "x"}', "--extra-body", "{x://"]) == [
        "--extra-body", '{"key": "[hidden]"}', "--extra-body", "[hidden]",
    ]  # fmt: skip

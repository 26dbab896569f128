"""A planted key is nowhere: not in the record, journal, report, JUnit, summary, terminal output or process arguments."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path

import pytest

from harness.gsm8k.credentials import Redactor, clean_command, parse_base_url, read_key
from harness.verdict import UsageError

KEY = 'sk-zq7x"K3y/with+odd=characters'
ECHO = [{"fault": "status", "status": 400, "share": 0.1, "message": "bad key {authorization}"}]


def everything_written(folder: Path, done) -> str:
    files = [
        p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("server-") and p.name != "key"
    ]
    assert {"record.json", "journal.jsonl", "junit.xml", "summary.md"} <= {p.name for p in files}
    return "".join(p.read_text(encoding="utf-8") for p in files) + done.out + done.err


@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_planted_key_that_the_server_echoes_is_nowhere(source, serve, process, tmp_path):
    server = serve(key=KEY, faults=ECHO)
    (tmp_path / "key").write_text(KEY + "\n", encoding="utf-8")
    env = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    env |= {"OPENAI_API_KEY": KEY} if source == "environment" else {}
    more = ["--api-key-file", str(tmp_path / "key")] if source == "file" else []
    done = process(server.url, "--max-unanswered", "0.5", "--min-accuracy", "0.9", *more, env=env)
    assert done.code == 0, done.err
    assert done.stage["unanswered"] > 0
    written = everything_written(tmp_path, done)
    assert "bad key Bearer [hidden]" in written
    for form in (KEY, json.dumps(KEY)[1:-1], "zq7x"):
        assert form not in written


def test_credentials_in_a_url_are_sent_and_shown_nowhere(serve, cli, tmp_path):
    server = serve(faults=ECHO)
    url = server.url.replace("http://", "http://user:pl4nted@") + "?token=t0ken-planted"
    token = b64encode(b"user:pl4nted").decode()
    env = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    done = cli(url, "--max-unanswered", "0.5", "--min-accuracy", "0.9", env=env)
    assert done.code == 0, done.err
    written = everything_written(tmp_path, done)
    assert "bad key Basic [hidden]" in written
    assert f"http://[hidden]@127.0.0.1:{server.port}/v1?token=[hidden]" in done.stage["server"]["url"]
    for form in ("pl4nted", token, "t0ken-planted"):
        assert form not in written


def test_a_refused_key_is_said_in_one_line(serve, cli):
    done = cli(serve(key=KEY).url)
    assert done.code == 2
    assert "the API key is missing or refused" in done.out.splitlines()[0]


def test_a_wrong_url_is_never_repeated():
    for text in ("ftp://user:pl4nted@host/v1", "user:pl4nted@host", "http://user:pl4nted@host:notaport/v1"):
        with pytest.raises(UsageError) as error:
            parse_base_url(text)
        assert "pl4nted" not in str(error.value)
        assert "://" not in text or "pl4nted" not in " ".join(clean_command(["--base-url", text]))


def test_commands_are_recorded_without_credentials():
    assert clean_command(["harness", "--base-url=http://u:secret@h:1/v1", "http://h/v1?key=longsecret", "--model", "a/b"]) == [
        "harness", "--base-url=http://[hidden]@h:1/v1", "http://h/v1?key=[hidden]", "--model", "a/b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "join", "root"),
    [
        ("http://h:8000/v1/", "http://h:8000/v1/models", "http://h:8000/health"),
        ("http://h:8000/v1/completions", "http://h:8000/v1/models", "http://h:8000/health"),
        ("https://h/api/v1/chat/completions", "https://h/api/v1/models", "https://h/api/health"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1/models", "http://[::1]:80/health"),
        ("http://h/v1?api-version=2", "http://h/v1/models?api-version=2", "http://h/health?api-version=2"),
    ],
)
def test_paths_are_joined_to_the_base_url(text, join, root):
    endpoint = parse_base_url(text)
    assert endpoint.join("models") == join
    assert endpoint.root("health") == root


def test_a_key_that_cannot_be_read_or_sent_is_bad_usage(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="No such file"):
        read_key(None, tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        read_key(None, tmp_path / "empty")
    monkeypatch.setenv("THE_KEY", "two words")
    with pytest.raises(UsageError, match="cannot be sent") as error:
        read_key("THE_KEY", None)
    assert "two words" not in str(error.value)
    monkeypatch.setenv("THE_KEY", " abcd ")
    assert read_key("THE_KEY", None) == "abcd"


def test_short_words_are_not_taken_for_secrets():
    assert Redactor("", "abc").text("abc") == "abc"
    assert Redactor("abcd").body(b"xabcdx") == b"x[hidden]x"

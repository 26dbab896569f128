"""Bad usage is one clear line and exit 64, and nothing was asked."""

from __future__ import annotations

import os

import pytest

from harness.cli import run as run_command

CASES = {
    "unknown task": (["--task", "gsm9k"], "gsm9k"),
    "missing file": (["--dataset", "/nowhere/test.jsonl"], "/nowhere/test.jsonl"),
    "negative concurrency": (["--concurrency", "-1"], "--concurrency must be at least 1, got -1"),
    "not a number": (["--concurrency", "many"], "'--concurrency': 'many' is not a valid integer"),
    "percent": (
        ["--min-accuracy", "90"],
        "--min-accuracy must be a fraction between 0 and 1, got 90; did you mean 0.9?",
    ),
    "nan": (["--min-accuracy", "nan"], "--min-accuracy must be a fraction between 0 and 1"),
    "expect": (["--expect", "1"], "--expect must lie between 0 and 1, got 1"),
    "too many questions": (["--questions", "65"], "--questions 65: the data holds 64"),
    "no questions": (["--questions", "0"], "--questions must be at least 1, got 0"),
    "unknown option": (["--bogus"], "No such option"),
    "unknown mode": (["--mode", "quick"], "'--mode'"),
    "limit": (["--limit", "empty"], "--limit must be CLASS=SHARE"),
    "limit of no class": (["--limit", "emptiness=0.1"], "emptiness"),
    "limit too large": (["--limit", "empty=5"], "between 0 and 1"),
    "smoke with threshold": (["--mode", "smoke", "--min-accuracy", "0.9"], "--mode smoke"),
    "drop without baseline": (["--max-drop", "0.01"], "--max-drop"),
    "missing baseline": (["--baseline", "/nowhere"], "--baseline /nowhere"),
    "timeout": (["--timeout", "inf"], "--timeout must be a number of seconds, got inf"),
    "url": (["--base-url", "localhost:8000"], "--base-url must look like http://host:port/v1"),
}


def call(arguments, capsys):
    return run_command(["gsm8k", *arguments]), capsys.readouterr()


@pytest.mark.parametrize("name", CASES)
def test_bad_usage_is_one_line_and_64(name, data, tmp_path, capsys):
    more, said = CASES[name]
    good = ["--base-url", "http://127.0.0.1:9/v1", "--dataset", str(data[0]), "--fewshot", str(data[1])]
    code, printed = call([*good, "--out", str(tmp_path / "out"), *more], capsys)
    assert code == 64
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("harness: ")
    assert said in printed.err
    assert not (tmp_path / "out" / "record.json").exists()


def test_data_that_is_not_json_lines_is_64(data, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text("question,answer\n", encoding="utf-8")
    arguments = ["--base-url", "http://127.0.0.1:9/v1", "--dataset", str(bad), "--fewshot", str(data[1])]
    code, printed = call([*arguments, "--out", str(tmp_path / "out")], capsys)
    assert code == 64
    assert "bad.jsonl" in printed.err


def test_a_baseline_that_is_no_record_is_64(data, tmp_path, capsys):
    (tmp_path / "record.json").write_text('{"schema": 1, "run_id": "x", "created": "", "command": []}')
    arguments = ["--base-url", "http://127.0.0.1:9/v1", "--dataset", str(data[0]), "--fewshot", str(data[1])]
    more = ["--out", str(tmp_path / "out"), "--baseline", str(tmp_path)]
    code, printed = call([*arguments, *more], capsys)
    assert code == 64
    assert "holds no answered GSM8K question" in printed.err


def test_an_output_folder_that_cannot_be_written_is_an_error_before_the_first_request(serve, cli, tmp_path):
    server = serve()
    (tmp_path / "file").write_text("")
    done = cli(server.url, out=tmp_path / "file" / "out")
    assert done.code == 64
    assert "cannot be written" in done.err
    assert server.stats()["completions"] == 0
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert cli(server.url, out=tmp_path / "closed").code == 64


def test_bad_usage_is_64_through_a_process(process):
    done = process("http://127.0.0.1:9/v1", "--min-accuracy", "90")
    assert (done.code, done.out, len(done.err.splitlines())) == (64, "", 1)

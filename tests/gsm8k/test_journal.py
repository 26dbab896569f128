"""Answers survive whatever happens to the run, and are never taken for another run's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.gsm8k.journal import Journal
from harness.verdict import UsageError

ROOT = Path(__file__).parents[2]
BINDING = {"url": "http://a/v1", "model": "m", "hashes": {"data": "1"}}
CHANGING = {"run_id", "created", "seconds", "command", "requests", "resumed", "latency_s"}


def sample(index, repeat=0):
    return {"index": index, "repeat": repeat, "answer": "x\u2028\n"}


def without_changing(value):
    """Drop timestamps, seconds, request counts and the resumed flag, wherever they are."""
    if isinstance(value, dict):
        return {k: without_changing(v) for k, v in value.items() if k not in CHANGING}
    return [without_changing(v) for v in value] if isinstance(value, list) else value


def test_sigkill_at_20_random_moments_loses_and_repeats_no_answer(serve, run_here, data, tmp_path):
    kills, concurrency = 20, 4
    server = serve(latency=0.05)
    options = {
        "url": server.url,
        "dataset": str(data[0]),
        "fewshot": str(data[1]),
        "out": str(tmp_path / "killed"),
    }
    options |= {"kills": kills, "seed": 7, "longest": 0.25, "concurrency": concurrency}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_runs.py")), json.dumps(options)],
        capture_output=True, text=True, check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    told = json.loads(done.stdout)
    tries = server.stats()["tries"]
    run_here(server.url, out=tmp_path / "quiet", concurrency=concurrency)
    quiet = json.loads((tmp_path / "quiet" / "record.json").read_text(encoding="utf-8"))
    resumed = json.loads((tmp_path / "killed" / "record.json").read_text(encoding="utf-8"))

    assert told["code"] == 0
    assert told["killed"] >= kills // 2
    for before, after in zip(told["held"], told["held"][1:], strict=False):
        assert set(before) <= set(after)
    assert all(max(Counter(held).values(), default=1) == 1 for held in told["held"])
    assert sum(tries.values()) <= 64 + 2 * kills + told["killed"] * concurrency
    assert without_changing(resumed) == without_changing(quiet)
    assert resumed["gsm8k"]["resumed"]["samples"] == len(told["held"][-1])


def test_a_journaled_question_is_never_asked_again(serve, process):
    server = serve(latency=0.1)
    first = process(
        server.url, "--concurrency", "4", kill_after=0.5, wait_for=lambda: server.stats()["completions"] > 4
    )
    assert first.code == -signal.SIGKILL
    lines = [json.loads(x) for x in (first.folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    journaled = {e["sample"]["question"] for e in lines if "sample" in e}
    assert 3 < len(journaled) < 60
    before = server.stats()["tries"]
    second = process(server.url, "--resume", "--min-accuracy", "0.9")
    after = server.stats()["tries"]
    assert second.code == 0
    keys = [hashlib.sha256(q.encode()).hexdigest()[:12] for q in journaled]
    asked_again = [k for k in keys if after[k] != before[k]]
    assert len(asked_again) <= 1  # the question of the sanity check, if that had not finished
    assert second.stage["resumed"] == {"flag": True, "samples": len(journaled)}


def test_ctrl_c_ends_with_130_and_a_record_and_resume_goes_on(serve, process):
    server = serve(latency=0.1)
    first = process(
        server.url, "--concurrency", "4", kill_after=0.3, kill_with=signal.SIGINT,
        wait_for=lambda: server.stats()["completions"] > 4,
    )  # fmt: skip
    assert first.code == 130
    assert first.record["interrupted"] is True
    assert (first.stage["verdict"], first.stage["qualifier"]) == ("UNKNOWN", "undecided")
    assert first.stage["not_asked"] > 0
    assert "Traceback" not in first.err
    answered = first.stage["answered"]
    second = process(server.url, "--resume", "--min-accuracy", "0.9")
    assert second.code == 0
    assert second.stage["resumed"]["samples"] == answered
    assert second.record["interrupted"] is False


def test_without_resume_no_journal_is_read_and_the_old_one_is_kept(serve, run_here, tmp_path):
    server = serve()
    run_here(server.url)
    old = (tmp_path / "out" / "journal.jsonl").read_text(encoding="utf-8")
    stage = run_here(server.url)
    assert stage["resumed"] == {"flag": False, "samples": 0}
    assert stage["requests"]["sent"] == 66
    assert (tmp_path / "out" / "journal.jsonl.previous").read_text(encoding="utf-8") == old


def test_a_complete_journal_asks_nothing_and_says_so(serve, run_here):
    server = serve()
    first = run_here(server.url)
    second = run_here(server.url, resume=True)
    assert second["requests"]["sent"] == 0
    assert second["resumed"] == {"flag": True, "samples": 64}
    assert without_changing(first) == without_changing(second)


@pytest.mark.parametrize(
    ("server_change", "settings", "said"),
    [
        ({"models": ["other"]}, {}, "model was test-model, is other"),
        ({"version": "2.0"}, {}, "server_version was 1.2.3, is 2.0"),
        ({}, {"max_tokens": 100}, "generation was"),
        ({}, {"chat": True}, "hashes was"),
        ({}, {"num_fewshot": 2}, "hashes was"),
    ],
)
def test_the_journal_of_another_run_is_refused(server_change, settings, said, serve, run_here):
    server = serve()
    run_here(server.url)
    server.stop()
    other = serve(port=server.port, **server_change)
    with pytest.raises(UsageError, match="belongs to another run") as refused:
        run_here(other.url, resume=True, **settings)
    assert said in str(refused.value)
    assert other.stats()["completions"] == 0


def test_the_journal_of_another_url_is_refused(serve, run_here):
    run_here(serve().url)
    with pytest.raises(UsageError, match="url was http://127"):
        run_here(serve().url, resume=True)


def test_a_torn_last_line_is_dropped_and_a_damaged_one_inside_is_refused(tmp_path):
    journal = Journal.open(tmp_path, BINDING, resume=True)
    journal.write("sample", sample(1))
    journal.write("sample", sample(2))
    journal.close()
    path = tmp_path / "journal.jsonl"
    whole = path.read_bytes()
    for cut in range(1, 30):
        path.write_bytes(whole[:-cut])
        journal = Journal.open(tmp_path, BINDING, resume=True)
        assert list(journal.found.samples) == [(1, 0)]
        assert journal.found.torn
        journal.write("sample", sample(2))
        journal.close()
        assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"index": 1', b'"index" 1'))
    with pytest.raises(UsageError, match="line 2 is damaged"):
        Journal.open(tmp_path, BINDING, resume=True)


def test_a_journal_torn_in_its_first_line_begins_again(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b'{"binding": {"ver')
    journal = Journal.open(tmp_path, BINDING, resume=True)
    journal.write("sample", sample(1))
    journal.close()
    assert list(Journal.open(tmp_path, BINDING, resume=True).found.samples) == [(1, 0)]


def test_two_runs_cannot_write_one_journal(tmp_path):
    journal = Journal.open(tmp_path, BINDING, resume=False)
    for resume in (True, False):
        with pytest.raises(UsageError, match="another run is writing it"):
            Journal.open(tmp_path, BINDING, resume=resume)
    journal.close()


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"other": 1}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="is not a journal"):
        Journal.open(tmp_path, BINDING, resume=True)
    assert path.read_text(encoding="utf-8") == '{"other": 1}\n'

"""Every way in which a server fails, against a real server process that fails so: in mid-run and under concurrency 32.

Unanswered is never wrong: a fault that passes costs retries only, and one that stays is counted apart.
"""

from __future__ import annotations

import socket
import threading
import time

import pytest

from harness.gsm8k import data as rows_of_tasks
from harness.gsm8k import preflight
from harness.gsm8k.credentials import parse_base_url

# fault rule, settings, what the error line says, whether it is retried
FAULTS = {
    "reset in mid-body": ({"fault": "reset"}, {}, "connection lost in the middle of the body", True),
    "reset before": ({"fault": "reset_before"}, {}, "connection lost before the response", True),
    "400": ({"fault": "status", "status": 400}, {}, "HTTP 400 Bad Request: planted", False),
    "401": ({"fault": "status", "status": 401}, {}, "HTTP 401 Unauthorized: planted", False),
    "404": ({"fault": "status", "status": 404}, {}, "HTTP 404 Not Found: planted", True),
    "redirect": ({"fault": "status", "status": 302}, {}, "HTTP 302", False),
    "429": ({"fault": "status", "status": 429, "retry_after": 0.2}, {}, "HTTP 429 Too Many Requests: planted", True),
    "500": ({"fault": "status", "status": 500}, {}, "HTTP 500 Internal Server Error: planted", True),
    "503 while loading": ({"fault": "status", "status": 503}, {}, "HTTP 503 Service Unavailable: planted", True),
    "a body that never ends": ({"fault": "endless"}, {"timeout": 1.0}, "the body did not end", True),
    "a body without bound": ({"fault": "endless", "chunk": 1 << 20, "pause": 0}, {}, "the body does not end (16 MiB read)", True),
    "truncated JSON": ({"fault": "truncated"}, {}, "broken JSON after", True),
    "choices: []": ({"fault": "no_choices"}, {}, "no choices (choices: [])", True),
    "200 with an error": ({"fault": "error_200"}, {}, "HTTP 200 with an error: worker crashed", True),
    "wrong content type": ({"fault": "html"}, {}, "content type text/html, expected JSON", True),
    "hang after the headers": ({"fault": "hang"}, {"timeout": 1.0}, "the headers came, the body did not end", True),
    "no response at all": ({"fault": "silent"}, {"timeout": 1.0}, "timed out after 1 s (no response)", True),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_mid_run_that_passes_costs_no_answer(name, serve, run_here):
    rule, settings, said, retried = FAULTS[name]
    server = serve(faults=[rule | {"after": 40, "until": 41}])
    stage = run_here(server.url, concurrency=1, max_unanswered=0.1, min_accuracy=0.9, **settings)
    assert said in stage["errors"][0]["error"]
    assert stage["errors"][0]["count"] == 1
    assert stage["correct_strict"] == stage["answered"]
    if retried:
        assert (stage["answered"], stage["unanswered"], stage["requests"]["retried"]) == (64, 0, 1)
    else:
        assert (stage["answered"], stage["unanswered"], stage["requests"]["retried"]) == (63, 1, 0)
    assert stage["verdict"] == "PASS"


# 404 where nothing was ever answered is a wrong address, and no restart: tests/gsm8k/test_retrying.py
@pytest.mark.parametrize("name", [name for name in FAULTS if name != "404"])
def test_a_fault_that_stays_under_concurrency_32_is_infra_and_not_a_wrong_answer(name, serve, run_here):
    rule, settings, said, retried = FAULTS[name]
    server = serve(faults=[rule | {"share": 0.15}])
    stage = run_here(server.url, concurrency=32, max_unanswered=0.5, retry_seconds=0.3, **settings)
    unanswered = [s for s in stage["samples"] if s["error"]]
    assert 3 <= len(unanswered) == stage["unanswered"] <= 20
    assert any(said in s["error"] for s in unanswered)
    assert all(s["class"] is None and not s["strict"] for s in unanswered)
    assert all((s["attempts"] > 1) == retried for s in unanswered if "429" not in s["error"])
    assert stage["answered"] + stage["unanswered"] == stage["questions"] == 64
    assert stage["accuracy_strict"] == 1.0
    # On a busy machine a hang can show before the headers or after them: two lines of one kind.
    assert len({e["kind"] for e in stage["errors"]}) == 1
    assert sum(e["gave_up"] for e in stage["errors"]) >= stage["unanswered"]


@pytest.mark.parametrize("concurrency", [1, 32])
def test_a_null_text_is_an_answer_with_a_class_of_its_own(concurrency, serve, run_here):
    server = serve(faults=[{"fault": "null", "after": 40, "until": 42}])
    stage = run_here(server.url, concurrency=concurrency)
    assert (stage["answered"], stage["unanswered"]) == (64, 0)
    assert (
        1 <= stage["classes"]["null or reasoning only"] <= 2
    )  # one of the two may have met the sanity check
    assert stage["errors"] == []


@pytest.mark.parametrize("files", [True, False])
def test_a_dead_port_is_unknown_in_one_line_before_any_data_is_asked_of_the_hub(
    files, cli, data, monkeypatch
):
    """Without files the data would come from the hub, which takes half a minute to fail."""

    def read_hub(*arguments):
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr(rows_of_tasks, "read_hub", read_hub)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    done = cli(url, files=files)
    assert done.code == 2
    assert (done.stage["verdict"], done.stage["qualifier"]) == ("UNKNOWN", "infra")
    assert done.stage["task"]["name"] == "gsm8k"
    assert (done.stage["questions"], done.stage["requests"]["sent"]) == (64 if files else 0, 0)
    said = done.out.splitlines()[0]
    assert (
        said
        == f"UNKNOWN (infra): {url}: cannot connect: Connection refused; --wait-ready SECONDS waits for it"
    )
    assert done.err == ""


def test_a_port_that_never_answers_is_given_two_seconds(monkeypatch):
    started = threading.Event()

    def create_connection(address, timeout):
        started.set()
        time.sleep(1)
        raise OSError

    monkeypatch.setattr(preflight.socket, "create_connection", create_connection)
    monkeypatch.setattr(preflight, "CONNECT_S", 0.05)
    said = preflight.unreachable(parse_base_url("http://192.0.2.1:8000/v1"))
    assert started.is_set()
    assert said == "cannot connect: no answer within 0.05 s"


def test_more_than_one_percent_unanswered_is_unknown_whatever_the_accuracy(serve, cli):
    server = serve(faults=[{"fault": "status", "status": 400, "share": 0.1}])
    done = cli(server.url)
    assert done.code == 2
    assert (done.stage["verdict"], done.stage["qualifier"]) == ("UNKNOWN", "infra")
    assert "mostly: HTTP 400 Bad Request: planted" in done.out.splitlines()[0]
    assert done.out.count("error, ") == 1


def test_a_server_that_dies_in_mid_run_and_returns_costs_nothing(serve, run_here):
    server = serve(latency=0.02, faults=[{"fault": "die", "after": 30}])
    back = []

    def restart():
        server.process.wait()
        time.sleep(0.3)
        back.append(serve(port=server.port))

    thread = threading.Thread(target=restart)
    thread.start()
    stage = run_here(server.url, concurrency=8)
    thread.join()
    assert (stage["answered"], stage["unanswered"], stage["correct_strict"]) == (64, 0, 64)
    assert {e["kind"] for e in stage["errors"]} == {"lost", "away"}
    assert sum(e["gave_up"] for e in stage["errors"]) == 0


def test_a_server_that_dies_and_stays_away_ends_the_run_within_the_retry_seconds(serve, run_here):
    server = serve(latency=0.02, faults=[{"fault": "die", "after": 40}])
    stage = run_here(server.url, concurrency=8, retry_seconds=0.5)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
    assert stage["correct_strict"] == stage["answered"] > 0
    assert stage["not_asked"] > 0


def test_retry_after_is_waited_for(serve, run_here):
    server = serve(faults=[{"fault": "status", "status": 429, "retry_after": 1, "after": 10, "until": 11}])
    stage = run_here(server.url, concurrency=1)
    times = server.stats()["times"]
    assert stage["answered"] == 64
    assert times[11] - times[10] >= 1.0


def test_a_retry_after_beyond_the_budget_is_not_waited_for(serve, run_here):
    server = serve(faults=[{"fault": "status", "status": 429, "retry_after": 3600, "after": 10, "until": 11}])
    stage = run_here(server.url, concurrency=1, max_unanswered=0.1)
    assert stage["unanswered"] == 1
    (given_up,) = [sample for sample in stage["samples"] if sample["error"]]
    assert given_up["attempts"] == 1


def test_six_of_1319_always_500_is_finished_scored_and_reported(serve, run_here, write_data):
    data = write_data(1319)
    broken = [f"Ada has {i} apples" for i in (50, 300, 555, 777, 1000, 1300)]
    server = serve(data=str(data[0]), faults=[{"fault": "status", "status": 500, "questions": broken}])
    stage = run_here(server.url, concurrency=64, dataset=data[0], fewshot=data[1], min_accuracy=0.9)
    assert (stage["verdict"], stage["answered"], stage["unanswered"], stage["correct_strict"]) == (
        "PASS",
        1313,
        6,
        1313,
    )
    assert stage["errors"] == [
        {"error": "HTTP 500 Internal Server Error: planted", "kind": "broken", "count": 24, "gave_up": 6}
    ]
    assert sorted(s["index"] for s in stage["samples"] if s["error"]) == [40, 290, 545, 767, 990, 1290]

"""Whole runs against a real server: verdicts, subsets, repeats, baselines, probes, and what is asked of the server."""

from __future__ import annotations

import re

import pytest

from harness.gsm8k import preflight
from harness.verdict import UsageError


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch):
    monkeypatch.setattr(preflight, "POLL_S", 0.02)


def test_a_run_without_a_threshold_or_a_baseline_is_not_judged_and_says_so(serve, cli):
    server = serve()
    done = cli(server.url)
    assert done.code == 2
    assert done.out.startswith("UNKNOWN (not judged): neither dead nor degenerate; accuracy (strict) 1.0000")
    stage = done.stage
    assert stage["reason"].endswith(
        "was not judged: give --min-accuracy, --baseline, --preset or --against URL"
    )
    assert (stage["correct_strict"], stage["correct_flexible"], stage["questions"]) == (64, 64, 64)
    assert [s["index"] for s in stage["samples"]] == list(range(64))
    assert sum(s["wave"] for s in stage["samples"]) == 32
    assert stage["samples"][0]["usage"]["prompt_tokens"] == 700
    assert stage["samples"][0]["finish_reason"] == "stop"
    assert stage["server"] == {"url": server.url, "model": "test-model", "version": "1.2.3"}
    assert max(server.stats()["stops"]) <= 4


def test_a_dead_server_fails_after_one_wave(serve, cli):
    server = serve(answer="dead", latency=1.5)
    done = cli(server.url, "--concurrency", "32")
    assert done.code == 1
    assert (done.stage["verdict"], done.stage["qualifier"]) == ("FAIL", "dead")
    assert done.stage["decisions"]["smoke"]
    assert not done.stage["decisions"]["full"]
    assert 32 <= done.stage["answered"] < 64, "a quick worker's next answer may arrive before the wave's last"
    assert server.stats()["completions"] < 100


def test_half_floods_fail_as_degenerate(serve, run_here):
    stage = run_here(serve(flood_share=0.5).url)
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "degenerate")
    assert "NaN logits" in stage["reason"]


def test_smoke_mode_stops_after_the_wave_and_never_passes(serve, cli):
    server = serve()
    done = cli(server.url, "--mode", "smoke")
    assert done.code == 0
    assert done.out.startswith("NOT DEAD: ")
    assert "lets through" in done.out
    assert server.stats()["completions"] == 34
    assert done.stage["questions"] == 32


@pytest.mark.parametrize(
    ("wrong", "least", "verdict"),
    [(0.0, 0.9, ("PASS", "")), (0.5, 0.95, ("FAIL", "accuracy")), (0.0, 0.99, ("UNKNOWN", "undecided"))],
)
def test_min_accuracy_is_judged_on_the_interval(wrong, least, verdict, serve, run_here):
    stage = run_here(serve(wrong_share=wrong).url, min_accuracy=least, expect=0.2)
    assert (stage["verdict"], stage["qualifier"]) == verdict


def test_a_baseline_is_compared_question_by_question(serve, run_here, tmp_path):
    server = serve()
    run_here(server.url, out=tmp_path / "baseline")
    server.control(wrong_share=0.4)
    stage = run_here(server.url, baseline=tmp_path / "baseline", max_drop=0.05, expect=0.2)
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "accuracy")
    assert "lost" in stage["decisions"]["paired"]["reason"]


def test_a_baseline_of_other_questions_is_refused_before_the_first_request(
    serve, run_here, write_data, tmp_path
):
    server = serve()
    run_here(server.url, out=tmp_path / "baseline")
    asked = server.stats()["completions"]
    other = write_data(3)
    other[0].write_text(other[0].read_text().replace("Ada", "Bob"))
    with pytest.raises(UsageError, match="another question"):
        run_here(server.url, baseline=tmp_path / "baseline", dataset=other[0])
    assert server.stats()["completions"] == asked


def test_a_subset_is_seeded_and_a_smaller_one_is_its_beginning(serve, run_here):
    server = serve()
    chosen = [
        {s["index"] for s in run_here(server.url, questions=n, seed=seed)["samples"]}
        for n, seed in ((10, 1), (20, 1), (20, 1), (20, 2))
    ]
    assert chosen[0] < chosen[1] == chosen[2] != chosen[3]
    assert len(chosen[3]) == 20


def test_repeats_ask_every_question_again(serve, run_here):
    stage = run_here(serve().url, repeat=3, questions=40)
    assert [(s["repeat"], s["index"]) for s in stage["samples"]] == sorted(
        (s["repeat"], s["index"]) for s in stage["samples"]
    )
    assert [r["questions"] for r in stage["repeats"]] == [40, 40, 40]
    assert stage["spread"]["deviation"] == 0
    assert sum(s["wave"] for s in stage["samples"]) == 32


def test_chat_and_streams_give_the_same_answers(serve, run_here):
    server = serve()
    plain = run_here(server.url, questions=8)
    for settings in ({"chat": True}, {"stream": True}, {"chat": True, "stream": True}):
        stage = run_here(server.url, questions=8, **settings)
        assert [s["answer"] for s in stage["samples"]] == [s["answer"] for s in plain["samples"]]
        assert all((s["ttft_s"] is not None) == settings.get("stream", False) for s in stage["samples"])
        assert all(s["finish_reason"] == "stop" for s in stage["samples"])


def test_a_model_is_named_by_the_server_or_has_to_be_given(serve, run_here):
    assert run_here(serve(models=["only"]).url, questions=1)["server"]["model"] == "only"
    several = serve(models=["a", "b"])
    with pytest.raises(UsageError, match="serves 2 models: give --model NAME, one of a, b"):
        run_here(several.url)
    assert run_here(several.url, model="b", questions=1)["server"]["model"] == "b"
    with pytest.raises(UsageError, match="does not list its model"):
        run_here(serve(models=[]).url)


def test_a_loading_server_is_waited_for_only_when_asked(serve, run_here):
    stage = run_here(serve(loading=7).url, wait_ready=20, questions=1)
    assert stage["answered"] == 1
    stage = run_here(serve(loading=7).url)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
    assert "--wait-ready" in stage["reason"]


def test_two_identical_requests_are_part_of_every_run(serve, run_here):
    server = serve(flips=True)
    stage = run_here(server.url, questions=8, expect=0.01)
    assert stage["probes"]["sanity"]["same"] is False
    assert re.search(r"gave 2 different answers in 2 \(from character \d+ on\)", stage["notes"][0])
    assert sorted(server.stats()["bodies"]) == [1] * 8 + [2]


def test_probes_of_a_healthy_server_say_nothing_and_are_journaled(serve, run_here):
    server = serve()
    first = run_here(server.url, probe=True)
    again = run_here(server.url, probe=True, resume=True)
    assert again["requests"]["sent"] == 0
    assert again["probes"] == first["probes"]
    assert first["notes"] == []
    found = first["probes"]
    assert (found["cache"]["flush"], found["cache"]["flushed"]) == (None, None)
    assert found["cache"]["second"]["right"] == found["cache"]["second"]["compared"] == 16
    assert [(p["place"], p["right"]) for p in found["places"]["places"]] == [(5, 8), (10, 8), (15, 8)]
    assert {kind: counts["right"] for kind, counts in found["lengths"].items()} == {
        "short": 8,
        "plain": 8,
        "long": 8,
    }

"""Two live servers on the same questions: verdicts, the early end, its error rates, and what is kept of the second one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from harness.gsm8k.live import ALPHA, LOOK, Pairs, judge_pairs
from harness.gsm8k.sequential import drop_above, drop_below, drop_interval


@pytest.fixture
def both(serve, run_here, write_data):
    """Run the stage on two servers with the same questions; the first has `here` to itself."""

    def call(here, there=None, count=256, **settings):
        data = write_data(count)
        one, other = (serve(data=str(data[0]), latency=0.05, **ill) for ill in (here, there or {}))
        settings = {"dataset": data[0], "fewshot": data[1], "against": other.url, **settings}
        return run_here(one.url, **settings), one, other

    return call


def test_the_same_model_twice_passes_and_both_are_asked_the_same(both):
    stage, one, other = both({}, max_drop=0.1)
    assert (stage["verdict"], stage["qualifier"]) == ("PASS", "")
    assert "+0.00 points against the other server" in stage["reason"]
    assert "a drop of 10 points is excluded" in stage["reason"]
    live = stage["decisions"]["live"]["details"]
    assert live["early"] is True
    assert live["n"] % LOOK == 0
    assert live["n"] < stage["answered"] < 256
    tries = [server.stats()["tries"] for server in (one, other)]
    assert tries[0].keys() == tries[1].keys()
    assert {s["index"] for s in stage["against"]["samples"]} == {s["index"] for s in stage["samples"]}
    assert stage["against"]["server"] == {"url": other.url, "model": "test-model", "version": "1.2.3"}


def test_a_drop_that_is_shown_fails_early(both):
    stage, _, _ = both({"wrong_share": 0.3})
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "accuracy")
    assert "more than a drop of 2 points is shown" in stage["reason"]
    assert stage["not_asked"] > 0
    assert stage["against"]["accuracy_strict"] == 1


def test_what_is_neither_shown_nor_excluded_is_unknown(both):
    stage, _, _ = both({"wrong_share": 0.05}, count=64)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "undecided")
    assert "is neither shown nor excluded; about" in stage["reason"]
    assert stage["decisions"]["live"]["details"]["early"] is False


@pytest.mark.long
def test_a_threshold_needs_every_question(both):
    stage, _, _ = both({"wrong_share": 0.3}, min_accuracy=0.5, count=128)
    assert stage["answered"] == 128
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "accuracy")


def test_a_dead_reference_is_nothing_to_compare_with(both):
    stage, _, _ = both({}, {"answer": "dead"}, count=64)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "undecided")
    assert "the server of --against is FAIL (dead) itself" in stage["reason"]


@pytest.mark.long
def test_a_dead_server_is_dead_whatever_the_reference_says(both):
    stage, _, _ = both({"answer": "dead"}, count=64)
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "dead")


def test_a_reference_that_does_not_answer_is_infra(both):
    refuses = {"faults": [{"fault": "status", "status": 400, "share": 0.2}]}
    stage, _, _ = both({}, refuses, count=64)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
    assert "--against" in stage["reason"]


def test_a_reference_that_is_away_is_named(serve, run_here):
    stage = run_here(serve().url, against="http://127.0.0.1:9/v1")
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "infra")
    assert "--against http://127.0.0.1:9/v1: cannot connect" in stage["reason"]


@pytest.mark.long
def test_it_goes_on_where_it_was_interrupted(both, serve, run_here, write_data, tmp_path):
    data = write_data(96)
    one = serve(data=str(data[0]), wrong_share=0.02)
    other = serve(data=str(data[0]), faults=[{"fault": "status", "status": 400, "after": 40}])
    files = {"dataset": data[0], "fewshot": data[1], "against": other.url}
    first = run_here(one.url, **files)
    assert first["qualifier"] == "infra"
    held = first["against"]["answered"]
    assert 0 < held < 96
    other.control(data=str(data[0]))
    again = run_here(one.url, resume=True, **files)
    assert again["resumed"]["samples"] >= held - 2
    assert again["against"]["answered"] == 96
    assert other.stats()["completions"] == 96 - again["resumed"]["samples"]


def test_command_line(serve, cli):
    server = serve()
    other = serve(wrong_share=0.5)
    done = cli(server.url, "--against", other.url, "--against-model", "test-model", "--max-drop", "0.05")
    assert done.code == 0
    assert f"answered by test-model at {other.url}" in done.out
    for arguments, message in (
        (["--against", other.url, "--fail-on", "regression"], "belong together"),
        (["--against", server.url], "is the server of --base-url"),
        (["--against", other.url, "--mode", "smoke"], "asks every question once of both"),
        (["--against-model", "a"], "give --against URL too"),
        (["--against", "http://"], "--against must look like"),
    ):
        refused = cli(server.url, *arguments)
        assert refused.code == 64
        assert message in refused.err


def test_an_interval_holds_what_no_bet_refutes():
    for lost, gained, n in ((0, 0, 1), (3, 1, 50), (40, 20, 1319), (0, 30, 200), (25, 0, 25)):
        ends = drop_interval(lost, gained, n, ALPHA)
        assert -1 <= ends.low <= (lost - gained) / n <= ends.high <= 1
        inside, outside = (ends.low + ends.high) / 2, ends.high + 1e-6
        assert max(drop_below(lost, gained, n, inside), drop_above(lost, gained, n, inside)) < 1 / ALPHA
        if outside < 1:
            assert drop_below(lost, gained, n, outside) >= 1 / ALPHA


@pytest.mark.parametrize("drop", [-0.1, 0.0, 0.02, 0.3])
def test_e_values_are_fair_bets(drop):
    """The expected stake after a pair is 1 where the drop is exactly that one: exactly, for every share of differences."""
    for differ in (0.31, 0.5, 1.0):
        lost, gained = (differ + drop) / 2, (differ - drop) / 2
        for e in (drop_below, drop_above):
            mean = lost * e(1, 0, 1, drop) + gained * e(0, 1, 1, drop) + (1 - differ) * e(0, 0, 1, drop)
            assert mean == pytest.approx(1)


def simulated(generator, drop, noise, questions=1319, max_drop=0.02):
    pairs = Pairs(max_drop)
    for _ in range(questions):
        thrown = generator.random()
        lost, gained = thrown < noise / 2 + drop, noise / 2 + drop <= thrown < noise + drop
        pairs.add(here=not lost, there=not gained)
        if pairs.word:
            break
    return judge_pairs(pairs)


def test_runs_are_decided_wrongly_no_more_often_than_stated():
    generator = random.Random(20394)
    at_the_border = Counter(simulated(generator, 0.02, 0.02).word for _ in range(100))
    assert at_the_border["PASS"] <= 8
    assert at_the_border["FAIL"] <= 8
    same = Counter(simulated(generator, 0.0, 0.02).word for _ in range(30))
    assert same["FAIL"] == 0
    assert same["PASS"] >= 27
    worse = [simulated(generator, 0.08, 0.02) for _ in range(30)]
    assert sum(decision.word == "FAIL" for decision in worse) >= 28
    assert sum(decision.details["n"] for decision in worse) < 30 * 800

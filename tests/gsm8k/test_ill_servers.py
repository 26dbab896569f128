"""Servers that answer every request and are ill all the same, each with the verdict that its illness asks for."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def many(write_data):
    """Data of 200 questions."""
    return write_data(200)


@pytest.fixture
def judged(many, serve, run_here):
    """Ask a server 200 questions, once it is ill in this way; returns `record.gsm8k`."""
    server = serve()

    def call(settings, *, wrong_share=0.0, **rule):
        server.control(data=str(many[0]), wrong_share=wrong_share, illness=[rule] if rule else [])
        return run_here(server.url, dataset=many[0], fewshot=many[1], concurrency=8, **settings)

    return call


ALL_RIGHT = {"min_accuracy": 0.9}


@pytest.mark.parametrize(
    ("rule", "settings", "verdict", "said"),
    [
        ({"effect": "wrong", "requests": [100, None]}, ALL_RIGHT, ("FAIL", "degenerate"),
         "change point at request 101: accuracy 1.00 in the 98 requests before it, 0.00 in the 102 from there on"),
        ({"effect": "wrong", "requests": [0, 20]}, ALL_RIGHT, ("FAIL", "degenerate"),
         "change point at request 21: accuracy 0.00 in the 20 requests before it, 1.00 in the 180 from there on"),
        ({"effect": "wrong", "grows": 250}, {"expect": 0.3}, ("FAIL", "degenerate"), "accuracy changes along the requests"),
        ({"effect": "runs_on"}, ALL_RIGHT, ("FAIL", "degenerate"), "32 of 32 answers end by length"),
        ({"effect": "past_stop"}, ALL_RIGHT, ("FAIL", "degenerate"), "go on behind a stop string that was sent"),
        ({"effect": "reasoning", "wrong_share": 0.05}, ALL_RIGHT | {"chat": True}, ("FAIL", "format"),
         "200 of 200 answers stand in reasoning_content, without content: strict reads 0.9"),
        ({"effect": "unmarked", "wrong_share": 0.8}, {"expect": 0.1}, ("FAIL", "format"), "strict finds 0 of the"),
        ({"effect": "filtered"}, ALL_RIGHT, ("PASS", ""), "; warning: 200 of 200 answers ended neither by themselves nor"),
    ],
)  # fmt: skip
def test_an_illness_has_its_verdict(judged, rule, settings, verdict, said):
    stage = judged(settings, **rule)
    assert (stage["verdict"], stage["qualifier"]) == verdict, stage["reason"]
    assert said in stage["reason"]


def test_a_wrong_format_is_asked_to_its_end_so_that_the_model_is_scored(judged):
    stage = judged({}, effect="unmarked")
    assert stage["decisions"]["smoke"]["word"] == "FAIL"
    assert (stage["answered"], stage["accuracy_flexible"]) == (200, 1.0)


@pytest.mark.long
def test_a_server_that_does_not_stop_is_held_against_its_baseline(judged, tmp_path):
    baseline = tmp_path / "healthy"
    judged({"out": baseline})
    stage = judged({"baseline": baseline}, effect="runs_on", share=0.2)
    assert (stage["verdict"], stage["qualifier"]) == ("FAIL", "degenerate")
    assert "answers end at the token limit, 0 of the baseline's" in stage["reason"]


@pytest.mark.long
def test_a_weak_model_is_judged_by_its_baseline_and_not_dead(judged, tmp_path):
    baseline, dead = tmp_path / "weak", tmp_path / "dead"
    judged({"out": baseline, "expect": 0.01}, wrong_share=0.95)
    stage = judged({"baseline": baseline}, wrong_share=0.95)
    assert stage["verdict"] == "PASS"
    assert "warning" not in stage["reason"]
    assert judged({"out": dead}, wrong_share=0.95)["qualifier"] == "dead"
    stage = judged({"baseline": dead}, wrong_share=0.95)
    assert "warning: the baseline itself was FAIL (dead), with " in stage["reason"]


def test_the_order_of_the_requests_is_in_the_record_and_a_resumed_run_goes_on_with_it(judged, tmp_path):
    stage = judged({})
    orders = sorted(s["order"] for s in stage["samples"])
    assert orders == [i for i in range(202) if i not in {32, 33}], (
        "the two of the sanity check stand behind the wave"
    )
    journal = tmp_path / "out" / "journal.jsonl"
    kept = journal.read_text(encoding="utf-8").splitlines(keepends=True)[:101]
    journal.write_text("".join(kept), encoding="utf-8")
    lines = [json.loads(line) for line in kept]
    before = {e["sample"]["index"]: e["sample"]["order"] for e in lines if "sample" in e}
    again = {s["index"]: s["order"] for s in judged({"resume": True})["samples"]}
    assert {index: again[index] for index in before} == before
    assert min(order for index, order in again.items() if index not in before) > max(before.values())

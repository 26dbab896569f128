"""A server that refuses what shapes answers is unlike one that does not; what is only said in other words is alike."""

from __future__ import annotations

import json

import pytest

from harness.gsm8k import against
from harness.gsm8k.presets import Preset
from harness.gsm8k.reasoning import Reasoning
from tests.gsm8k.small_server import refusal

UNLIKE = "refused fields temperature, not none"


def refusing(field):
    return lambda body, number: refusal(field) if field in body else None


@pytest.fixture
def healthy(small, run_here, tmp_path):
    """A server, and the folder of a run on it."""
    server = small()
    run_here(server.url, out=tmp_path / "healthy")
    return server, tmp_path / "healthy"


def test_a_server_without_temperature_is_unlike_the_baseline_s(healthy, small, run_here):
    stage = run_here(small(refusing("temperature")).url, baseline=healthy[1], max_drop=0.2)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "unlike")
    assert stage["reason"].startswith(f"not judged, the setups are unlike ({UNLIKE}): +0.00 points against")
    assert stage["server"]["refused"] == ["temperature"]


def test_another_word_for_the_limit_is_alike(healthy, small, run_here):
    stage = run_here(small(refusing("max_tokens")).url, baseline=healthy[1], max_drop=0.2)
    assert stage["verdict"] == "PASS"
    assert stage["server"]["refused"] == ["max_tokens"]


def test_two_live_servers_are_compared_as_far_as_both_take_the_same(healthy, small, run_here):
    other = small(refusing("temperature"))
    stage = run_here(healthy[0].url, against=other.url, max_drop=0.2)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "unlike")
    assert "the setups are unlike (refused fields none, not temperature): +0.00 points" in stage["reason"]
    assert stage["against"]["server"]["refused"] == ["temperature"]
    (note,) = stage["notes"]
    assert note.startswith("--against: the server refuses temperature: none is sent")


def test_a_floor_does_not_judge_a_server_that_left_its_protocol(small, run_here, monkeypatch):
    protocol = {"interface": "completions", "refused fields": "none"}
    floor = Preset("mine", "mine", 0.9, 5, "here", "as it is", "--x", protocol)
    monkeypatch.setattr(against, "find_preset", lambda name: floor)
    assert run_here(small().url, preset="mine")["verdict"] == "PASS"
    stage = run_here(small(refusing("temperature")).url, preset="mine")
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "unlike")
    assert stage["reason"].startswith(f"this run is unlike the protocol of --preset mine (--x): {UNLIKE}")


def test_a_preset_of_another_protocol_leaves_two_live_servers_to_each_other(healthy, small, run_here):
    settings = {"max_drop": 0.2, "preset": "gpt-oss"}
    stage = run_here(healthy[0].url, against=small().url, **settings)
    assert stage["verdict"] == "PASS"
    assert stage["answered"] == 64, "a floor is about every question"
    assert "shown only" in stage["notes"][0]


def test_a_resumed_run_knows_what_was_refused(small, run_here):
    server = small(refusing("temperature"))
    run_here(server.url, questions=8)
    asked = len(server.bodies)
    stage = run_here(server.url, questions=16, resume=True)
    assert stage["server"]["refused"] == ["temperature"]
    assert len(server.bodies) == asked + 8, "nothing is refused a second time"
    assert run_here(server.url, questions=16, resume=True)["server"]["refused"] == ["temperature"]


def test_reasoning_counts_as_the_answer_on_request_and_is_a_lost_format_without(small, run_here, tmp_path):
    server = small(lambda body, number: {"text": None, "reasoning_content": server.gold(body)})
    lost = run_here(server.url, chat=True, min_accuracy=0.8, out=tmp_path / "lost")
    assert (lost["verdict"], lost["qualifier"]) == ("FAIL", "format")
    assert "answers stand in reasoning_content, without content: strict reads 1.000" in lost["reason"]
    scored = run_here(server.url, chat=True, min_accuracy=0.8, reasoning=Reasoning.SCORE)
    assert (scored["verdict"], scored["classes"]) == ("PASS", {"right": 64})
    unlike = run_here(server.url, chat=True, baseline=tmp_path / "lost", reasoning=Reasoning.SCORE)
    assert unlike["qualifier"] == "unlike"
    assert "reasoning score, not keep" in unlike["reason"]


def test_fields_of_the_user_are_part_of_a_setup(healthy, run_here):
    stage = run_here(healthy[0].url, baseline=healthy[1], extra_body={"top_k": 1})
    assert stage["qualifier"] == "unlike"
    assert "extra body {'top_k': 1}, not none" in stage["reason"]
    assert (
        json.loads((healthy[1] / "record.json").read_text(encoding="utf-8"))["gsm8k"]["verdict"] == "UNKNOWN"
    )

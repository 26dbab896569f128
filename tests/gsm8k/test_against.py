"""What a run is judged by: a baseline and a published floor are used where the setups are alike, and else named."""

from __future__ import annotations

import pytest

from harness.verdict import UsageError

CHAT = {"chat": True, "num_fewshot": 0}
UNLIKE = "interface chat, not completions; few-shot examples 0, not 5"


@pytest.fixture
def baseline(serve, run_here, tmp_path):
    """A server, and the folder of a run on it."""
    server = serve()
    run_here(server.url, out=tmp_path / "baseline")
    return server, tmp_path / "baseline"


def test_an_unlike_baseline_is_unknown_before_anything_is_asked(baseline, cli):
    server, folder = baseline
    asked = server.stats()["completions"]
    done = cli(server.url, "--chat", "--num-fewshot", "0", "--baseline", str(folder))
    assert done.code == 2
    assert done.out.startswith(
        f"UNKNOWN (unlike): this run and the baseline are unlike: {UNLIKE}. Nothing was asked"
    )
    assert (done.stage["answered"], done.stage["not_asked"]) == (0, 64)
    assert server.stats()["completions"] == asked
    found = (done.folder / "junit.xml").read_text(encoding="utf-8")
    assert found.count("<skipped") == 3
    assert 'type="UNKNOWN (unlike)"' in found


def test_a_forced_comparison_is_shown_and_not_judged(baseline, run_here):
    server, folder = baseline
    server.control(wrong_share=0.3)
    stage = run_here(server.url, baseline=folder, force_unlike=True, expect=0.2, **CHAT)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "unlike")
    assert stage["reason"].startswith(f"not judged, the setups are unlike ({UNLIKE}): -")
    assert "points against the baseline" in stage["reason"]
    assert (stage["decisions"]["full"]["word"], stage["answered"]) == ("PASS", 64)


def test_the_answer_budget_and_the_sampling_are_part_of_a_setup(baseline, run_here):
    server, folder = baseline
    stage = run_here(server.url, baseline=folder, max_tokens=200)
    assert stage["qualifier"] == "unlike"
    assert "answer budget 200, not 1024" in stage["reason"]


def test_a_drop_that_may_be_too_large_is_undecided(baseline, run_here):
    server, folder = baseline
    server.control(wrong_share=0.03)
    stage = run_here(server.url, baseline=folder)
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "undecided")
    assert "a drop of 2 points may be exceeded" in stage["reason"]


def test_a_preset_of_another_protocol_asks_nothing_unless_something_else_judges(serve, run_here):
    server = serve(models=["nvidia/DeepSeek-R1-0528-NVFP4"])
    stage = run_here(server.url, preset="deepseek-r1")
    assert (stage["verdict"], stage["qualifier"]) == ("UNKNOWN", "unlike")
    assert (
        "unlike the protocol of --preset deepseek-r1 (--task gsm8k.yaml --chat --max-tokens 16384)"
        in stage["reason"]
    )
    assert server.stats()["completions"] == 0
    judged = run_here(server.url, preset="deepseek-r1", min_accuracy=0.9)
    assert judged["verdict"] == "PASS"
    assert "published floor for deepseek-r1: 0.91 (SemiAnalysisAI/InferenceX#1721" in judged["notes"][0]
    assert "shown only" in judged["notes"][0]
    forced = run_here(server.url, preset="deepseek-r1", force_unlike=True)
    assert (forced["verdict"], forced["qualifier"]) == ("UNKNOWN", "not judged")


def test_the_floor_of_the_served_model_is_shown_in_every_run(serve, run_here):
    stage = run_here(serve(models=["openai/gpt-oss-120b"]).url, questions=8)
    assert stage["notes"][0].startswith("published floor for gpt-oss: 0.91 (")
    assert not run_here(serve().url, questions=8)["notes"]


def test_a_preset_judges_a_run_of_its_protocol(serve, run_here, monkeypatch):
    from harness.gsm8k import against
    from harness.gsm8k.presets import Preset

    floor = Preset(
        "mine", "mine", 0.9, 5, "here", "as it is", "", {"interface": "completions", "answer budget": 1024}
    )
    monkeypatch.setattr(against, "find_preset", lambda name: floor)
    server = serve()
    stage = run_here(server.url, preset="mine")
    assert stage["verdict"] == "PASS"
    assert stage["reason"].endswith("at least 0.9")
    assert stage["notes"] == ["published floor for mine: 0.9 (here, 5 runs: as it is); it judges this run"]
    server.control(wrong_share=0.4)
    assert run_here(server.url, preset="mine", expect=0.2)["qualifier"] == "accuracy"


def test_a_smoke_wave_has_no_preset_and_nothing_unlike_to_force(serve, run_here):
    with pytest.raises(
        UsageError, match="--mode smoke asks one wave: it cannot judge --min-accuracy, --baseline, --preset"
    ):
        run_here("http://127.0.0.1:9/v1", mode="smoke", preset="gpt-oss")
    with pytest.raises(UsageError, match="--force-unlike is about a comparison"):
        run_here("http://127.0.0.1:9/v1", force_unlike=True)

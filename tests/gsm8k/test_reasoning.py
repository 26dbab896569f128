"""Reasoning in the text and beside it: kept, stripped or scored, and which of the three is in the record."""

from __future__ import annotations

import pytest

from harness.gsm8k.payload import Reply
from harness.gsm8k.reasoning import Reasoning, read_reasoning
from harness.verdict import UsageError

THOUGHT = "<think>Is it #### 1? No.</think>\n\n"


@pytest.mark.parametrize(
    ("text", "stripped", "reasoning"),
    [
        (f"{THOUGHT}#### 18", "#### 18", "Is it #### 1? No."),
        ("It was opened in the prompt</think> #### 18", "#### 18", "It was opened in the prompt"),
        ("<think>a</think> no <think>b</think>#### 18", "#### 18", "a no <think>b"),
        ("  <think>It is cut at the li", "", "It is cut at the li"),
        ("#### 18", "#### 18", None),
        ("5 <think> 3", "5 <think> 3", None),
        ("", "", None),
        (None, None, None),
    ],
)
def test_strip_takes_reasoning_out_of_the_text_and_keeps_it_beside(text, stripped, reasoning):
    assert read_reasoning(Reply(text), Reasoning.STRIP) == Reply(stripped, reasoning)
    assert read_reasoning(Reply(text), Reasoning.KEEP) == Reply(text)


def test_strip_is_what_lm_eval_does_with_the_end_of_thinking():
    utils = pytest.importorskip("lm_eval.models.utils")
    for text in (f"{THOUGHT}#### 18", "a</think> b</think>\n c", "#### 18 ", "</think>"):
        theirs = utils.postprocess_generated_text(text, None, "</think>")
        assert read_reasoning(Reply(text), Reasoning.STRIP).text == theirs


def test_reasoning_is_scored_only_where_no_text_is_left():
    told = Reply(None, "so #### 18")
    assert read_reasoning(told, Reasoning.SCORE).scored == "so #### 18"
    assert read_reasoning(told, Reasoning.STRIP).scored is None
    assert read_reasoning(Reply(" ", "so #### 18"), Reasoning.SCORE).scored == "so #### 18"
    assert read_reasoning(Reply("#### 17", "so #### 18"), Reasoning.SCORE).scored is None
    assert read_reasoning(Reply("<think>so #### 18"), Reasoning.SCORE).scored == "so #### 18"


def test_a_server_without_a_reasoning_parser_is_judged_behind_the_thought(small, run_here, tmp_path):
    server = small(lambda body, number: {"text": THOUGHT + server.gold(body).strip()})
    kept = run_here(server.url, chat=True, questions=16, expect=0.01)
    assert (kept["correct_strict"], kept["correct_flexible"]) == (0, 16), "strict takes the first ####"
    stripped = run_here(server.url, chat=True, questions=16, reasoning=Reasoning.STRIP, out=tmp_path / "b")
    assert stripped["correct_strict"] == 16
    assert {s["reasoning"] for s in stripped["samples"]} == {"Is it #### 1? No."}
    assert (kept["settings"]["reasoning"], stripped["settings"]["reasoning"]) == ("keep", "strip")


@pytest.mark.parametrize("stream", [False, True])
def test_content_null_is_scored_by_its_reasoning_on_request(stream, small, run_here):
    server = small(lambda body, number: {"text": None, "reasoning_content": server.gold(body)})
    stage = run_here(server.url, chat=True, questions=16, reasoning=Reasoning.SCORE, stream=stream)
    assert (stage["correct_strict"], stage["classes"]) == (16, {"right": 16})
    assert all(s["answer"] is None and "####" in s["reasoning"] for s in stage["samples"])
    assert {s["scored"] for s in stage["samples"]} == {"reasoning"}


def test_a_journal_of_another_reasoning_mode_is_another_runs(small, run_here):
    server = small()
    run_here(server.url, questions=4)
    with pytest.raises(UsageError, match="belongs to another run"):
        run_here(server.url, questions=4, resume=True, reasoning=Reasoning.STRIP)

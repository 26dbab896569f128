"""The loop behind check, pytest and conformance: order, missing stages, time, known failures, what goes into a record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.records.record import RunRecord
from harness.rules import find_rules
from harness.running.known_failures import KnownFailure
from harness.running.rules import RuleFindings, judge_rules
from harness.running.settings import RunSettings
from harness.verdict import Verdict


@pytest.fixture(autouse=True)
def nothing_but_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems are counted here; those of seldom values come on top, see test_seldom_values.py."""
    monkeypatch.setattr("harness.running.runner.seldom_for", lambda *_: [])


SMALL = replace(PROFILES["quick"], experts=4, capacity=40)
THREE = find_rules(["QUANT", "GEMM", "MOE"])


def judge(session: Any, *, seconds: float = float("inf"), **words: Any) -> list[RuleFindings]:
    return list(judge_rules(session, THREE, RunSettings(SMALL, deadline=seconds, candidate="mine"), **words))


def test_each_rule_is_yielded_when_it_is_through(told, answer) -> None:
    session = told(lambda _: answer())
    found = judge_rules(session, THREE, RunSettings(SMALL, candidate="mine"))
    assert session.problems == []
    assert next(found).rule.id == "QUANT"
    assert len(session.problems) == 40
    assert [each.rule.id for each in found] == ["GEMM", "MOE"]


def test_a_rule_without_its_stage_is_skipped_unjudged(told, answer) -> None:
    session = told(lambda _: answer())
    described = replace(session.describe(), stages=["quantize_grouped", "masked_moe"])
    session.describe = lambda: described
    quant, gemm, moe = judge(session)
    assert gemm.skipped == "the candidate has no masked_grouped_gemm"
    assert gemm.result is None
    assert [each.result.verdict for each in (quant, moe)] == [Verdict.PASS] * 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"seconds": 29.5}, [10, 10, 10]),  # shared evenly
        ({"rule_seconds": 4.5}, [5, 5, 5]),
        ({"seconds": 29.5, "rule_seconds": 4.5}, [5, 5, 5]),
        ({"seconds": 7.5, "rule_seconds": 4.5}, [3, 3, 2]),
    ],
)
def test_time_is_shared_among_the_rules_that_are_left(
    told, answer, monkeypatch, words: dict[str, float], expected: list[int]
) -> None:
    session = told(lambda _: answer())
    monkeypatch.setattr("time.monotonic", lambda: float(len(session.problems)))  # each problem takes a second
    assert [each.result.examples for each in judge(session, **words) if each.result] == expected


def test_what_is_known_to_fail_and_what_was_drawn_goes_into_the_record(told, answer) -> None:
    known = KnownFailure("GEMM", "mine", "", "", "mine#1", "2026-11-29", "models an older kernel")
    problem = parse_problem("1x4x32x32:3:normal:0:nan")
    record = RunRecord("run", "now", [])
    for each in judge(told(lambda _: answer(illegal=1)), problem=problem, known=[known]):
        each.keep(record)
    assert [r.verdict for r in record.rules] == [Verdict.FAIL, Verdict.PASS, Verdict.FAIL]
    assert [(k["rule"], k["matched"]) for k in record.known_failures] == [("GEMM", True)]
    assert record.traps["nan"] == 3

"""What fails only now and then: it is repeated until it fails, and a race's choices are tried in an order that finds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.candidates.physical import Physical
from harness.diagnosis.cases import repetition
from harness.diagnosis.cases.repetition import bounds_of, failing_calls
from harness.diagnosis.hypotheses.choices import Choices
from harness.identification.measure import measure
from harness.running.judge import Judge

PROBLEM = "2x16x64x64:16,9:normal:1"


class FailsInRuns(Physical):
    """`physical` with one row missing in some of its calls of a stage, counted from 1."""

    def __init__(self, stage: str, *bad: int) -> None:
        super().__init__()
        self.stage, self.bad, self.count = stage, bad, 0

    def masked_grouped_gemm(self, *arguments: Any, **named: Any) -> Any:
        super().masked_grouped_gemm(*arguments, **named)
        if self._strikes("masked_grouped_gemm"):
            arguments[4][3, :, 0] = 0

    def masked_moe(self, *arguments: Any, **named: Any) -> Any:
        out = super().masked_moe(*arguments, **named)
        if self._strikes("masked_moe"):
            out[0, 3] = 0
        return out

    def _strikes(self, stage: str) -> bool:
        self.count += stage == self.stage
        return stage == self.stage and self.count in self.bad


RULES = [("GEMM", "masked_grouped_gemm"), ("MOE", "masked_moe")]


def repeated(rule: str, stage: str, *bad: int):
    candidate = FailsInRuns(stage, *bad)
    known = measure(candidate, probe=False).known
    candidate.count = 0
    return failing_calls(candidate, known, bounds_of(candidate, known), rule, PROBLEM)


@pytest.mark.parametrize(("rule", "stage"), RULES)
@pytest.mark.parametrize(
    ("bad", "runs", "kept"),
    [
        ((2,), 2, [1, 2]),
        ((1, 3), 3, [1, 2, 3]),  # the first run fills what a fault may remember
        ((9,), 9, [1, 8, 9]),
        ((1,), repetition.FEW_RUNS, [1, 3, 4]),  # never again: what was seen once is looked at
    ],
)
def test_a_rule_is_repeated_until_it_fails(rule: str, stage: str, bad, runs: int, kept: list[int]) -> None:
    calls, _, found = repeated(rule, stage, *bad)
    assert (found.number, found.failed) == (runs, True)
    calls = [call for call in calls if call.stage == stage]
    wrong = []
    for number, call in zip(kept, calls, strict=True):
        rows = call.output.permute(2, 0, 1) if rule == "GEMM" else call.output
        if not rows[0, 3].any():
            wrong.append(number)
    assert wrong == [n for n in kept if n in bad]


def test_what_never_fails_again_is_said() -> None:
    (finding,) = Judge(FailsInRuns("masked_moe")).diagnose("MOE", PROBLEM, "again")
    assert finding["passed"] == repetition.MOST_RUNS
    assert "passed in all" in finding["title"]
    assert finding["command"] == "again"


def test_a_slow_rule_is_repeated_a_few_times_only(monkeypatch) -> None:
    monkeypatch.setattr(repetition, "_RUNS_SECONDS", 0.0)
    assert repeated("MOE", "masked_moe")[2].number == repetition.FEW_RUNS


def test_rows_of_all_experts_are_tried_before_more_of_one() -> None:
    illegal = torch.zeros(3, 40, 8, dtype=torch.bool)
    illegal[1] = True
    illegal[2, 5, :2] = True
    choices = Choices(illegal)
    rows = [(e, r) for e in range(3) for r in range(40)]
    tried = [choices.choice(rows)]
    while choices.advance():
        tried.append(choices.choice(rows))
    assert tried[0][0] == 1
    assert tried[1] == (2, 5)


def test_a_strike_is_kept_to_the_calls_it_is_to_be_in() -> None:
    choices = Choices(torch.ones(1, 2, 4, dtype=torch.bool), strikes=(False, True))
    struck = []
    for call in range(2):
        choices.begin(call)
        struck.append(choices.random() < 1.0)
    assert struck == [False, True]
    assert choices.asked
    assert Choices(None).random() >= 1.0, "where nothing showed, even a sure strike did not happen"

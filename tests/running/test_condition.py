"""What failing problems have in common: named where it holds for them and for no other problem."""

from __future__ import annotations

import pytest

from harness.problems.problem import parse_problem
from harness.running.condition import common

PROBLEMS = [
    "1x1x16x16:1:normal:0",
    "2x8x64x32:1,8:normal:1",
    "3x40x80x64:0,2,40:normal:2:nan",
    "4x128x128x128:2,0,5,128:normal:3",
    "2x130x256x64:130,2:normal:4:nan+inf",
]


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        ([0, 1], "an expert has one row"),
        ([2, 3], "an expert has no row"),
        ([2, 4], "the problem has nan"),
        ([3, 4], "capacity is 128 or more (40 is right)"),
        ([0, 2], "hidden is no multiple of 64"),
        ([0, 4], ""),
        ([0], ""),
        ([0, 1, 2, 3, 4], "a stage is called"),
    ],
)
def test_the_condition_holds_for_the_failing_problems_and_for_no_other(failing, words) -> None:
    parsed = [parse_problem(text) for text in PROBLEMS]
    chosen = [parsed[i] for i in failing]
    assert common(chosen, [p for p in parsed if p not in chosen]) == words

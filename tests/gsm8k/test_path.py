"""The running accuracy: counted in the order asked, ended by the whole run's figure, thinned without losing the end."""

from __future__ import annotations

import pytest

from harness.gsm8k.path import accuracy_path
from harness.gsm8k.statistics import wilson


def test_each_point_counts_what_was_asked_before_it(make_sample):
    answers = ["so\n#### 18", "so\n#### 17", "so\n#### 18", "so\n#### 18"]
    asked = [make_sample(i, answer) for i, answer in zip((7, 2, 9, 0), answers, strict=True)]
    asked.insert(2, make_sample(1, error="HTTP 500"))
    path = accuracy_path(asked, "strict")
    assert [(p.n, p.right) for p in path] == [(1, 1), (2, 1), (3, 2), (4, 3)]
    last = wilson(3, 4)
    assert (path[-1].low, path[-1].high) == pytest.approx((last.low, last.high), abs=1e-6)
    assert path[-1].share == 0.75


def test_only_the_first_repeat_counts(make_sample):
    asked = [make_sample(0), make_sample(0, "so\n#### 17", repeat=1)]
    assert [(p.n, p.right) for p in accuracy_path(asked, "strict")] == [(1, 1)]


@pytest.mark.parametrize("n", [1, 119, 120, 121, 1319])
def test_a_long_path_keeps_few_points_and_its_end(make_sample, n):
    path = accuracy_path([make_sample(i) for i in range(n)], "numeric")
    numbers = [p.n for p in path]
    assert len(numbers) == min(n, 120)
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == n


def test_nothing_answered_has_no_path(make_sample):
    assert accuracy_path([], "strict") == []
    assert accuracy_path([make_sample(0, error="timeout")], "strict") == []

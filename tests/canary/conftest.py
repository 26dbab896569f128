"""What the canary's tests share: questions of the test set and a loaded canary-256."""

from __future__ import annotations

import json

import pytest

from harness.canary import load_canary
from harness.canary.problems.generate import TEST

STOP = ["\n\n", "Question:"]


@pytest.fixture(scope="session")
def canary():
    return load_canary()


@pytest.fixture(scope="session")
def problems() -> list[dict]:
    rows = [json.loads(line) for line in TEST.read_text(encoding="utf-8").splitlines()]
    return rows[::7] + [row for i, row in enumerate(rows) if i % 7]  # every family among the first


@pytest.fixture(scope="session")
def prompts(problems) -> list[str]:
    return [f"Question: {row['question']}\nAnswer:" for row in problems]


@pytest.fixture(scope="session")
def score(problems):
    """Share of answers whose last number is right."""

    def share(answers: list[str]) -> float:
        right = [
            a.rpartition("####")[2].strip() == row["answer"].rpartition("####")[2].strip()
            for a, row in zip(answers, problems, strict=False)
        ]
        return sum(right) / len(answers)

    return share

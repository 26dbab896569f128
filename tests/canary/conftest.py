"""What the canary's tests share: questions of the test set and a loaded canary-256."""

from __future__ import annotations

import json

import pytest

from harness.canary import load_canary
from harness.canary.problems.generate import TEST

STOP = ["\n\n", "Question:"]
BRIEF = 48


@pytest.fixture(scope="session")
def canary():
    return load_canary()


@pytest.fixture(scope="session")
def problems() -> list[dict]:
    rows = [json.loads(line) for line in TEST.read_text(encoding="utf-8").splitlines()]
    return rows[::7] + [row for i, row in enumerate(rows) if i % 7]  # every family among the first


@pytest.fixture(scope="session")
def prompts(problems) -> list[str]:
    return prompts_of(problems)


@pytest.fixture(scope="session")
def brief(problems) -> list[dict]:
    """Seven questions of as many families with answers of at most `BRIEF` tokens: time goes by tokens, not by questions."""
    shortest: dict[str, dict] = {}
    for row in sorted(problems, key=lambda row: len(row["answer"])):
        shortest.setdefault(row["family"], row)
    return list(shortest.values())[:7]


def prompts_of(rows: list[dict]) -> list[str]:
    return [f"Question: {row['question']}\nAnswer:" for row in rows]


def share_right(answers: list[str], rows: list[dict]) -> float:
    """Share of answers whose last number is that of the row in its place."""
    right = [
        a.rpartition("####")[2].strip() == row["answer"].rpartition("####")[2].strip()
        for a, row in zip(answers, rows, strict=False)
    ]
    return sum(right) / len(answers)


@pytest.fixture(scope="session")
def score(problems):
    """Share of the answers to `prompts` whose last number is right."""
    return lambda answers: share_right(answers, problems)

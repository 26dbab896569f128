"""A session without a candidate: it answers what a test tells it to, so that the runner is tested without torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.candidates.protocol import ALL_STAGES, Traits
from harness.problems.problem import Problem, parse_problem

CANDIDATES = Path(__file__).parent.parent / "candidates"
Answer = Callable[[Problem], dict[str, Any]]


def comparison(compared: int = 10, illegal: int = 0, *, power: bool = True) -> dict[str, Any]:
    return {
        "stage": "gemm",
        "compared": compared,
        "illegal": illegal,
        "judged": {"by hand": compared},
        "accepted_altered": [] if power else ["zeros"],
        "worst_ratio": 0.5,
        "histogram": None,
        "message": "gemm[expert 0] = 1, legal is 2" if illegal else "",
        "place": {},
        "extent": {},
        "heatmap": None,
    }


def judged(**words: Any) -> dict[str, Any]:
    return {"status": "judged", "comparisons": [comparison(**words)]}


class ToldSession:
    """A harness.running.session.Session whose answers are a function of the problem."""

    def __init__(self, answer: Answer, traits: Traits | None = None) -> None:
        self.answer = answer
        self.traits = traits or Traits(device="cpu", k_multiple=16, n_multiple=1)
        self.problems: list[Problem] = []
        self.diagnosed: list[tuple[str, str, str]] = []
        self.diagnosis: list[dict[str, Any]] = []

    def describe(self) -> dict[str, Any]:
        return {"traits": asdict(self.traits), "measured": {}, "stages": list(ALL_STAGES)}

    def judge(self, rule_id: str, problem: str, seconds: float) -> dict[str, Any]:
        self.problems.append(parse_problem(problem))
        return self.answer(self.problems[-1])

    def diagnose(self, rule_id: str, problem: str, command: str, seconds: float) -> list[dict[str, Any]]:
        self.diagnosed.append((rule_id, problem, command))
        return self.diagnosis

    def close(self) -> None:
        pass


@pytest.fixture
def told() -> type[ToldSession]:
    return ToldSession


@pytest.fixture
def answer() -> Callable[..., dict[str, Any]]:
    """Build the answer "judged", with so many elements compared and illegal, with or without power."""
    return judged


@pytest.fixture(scope="session")
def faulty() -> Iterator[ModuleType]:
    """The misbehaving candidates of tests/candidates/faulty.py."""
    import importlib

    sys.path.insert(0, str(CANDIDATES))
    try:
        yield importlib.import_module("faulty")
    finally:
        sys.path.remove(str(CANDIDATES))


@pytest.fixture
def in_candidates_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process looks for `faulty:Name` in the current directory, as it does for a user."""
    monkeypatch.chdir(CANDIDATES)

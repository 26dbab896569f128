"""How the time of one judged problem grows with experts, k and rows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from harness.candidates.eager import Eager, EagerCuda
from harness.problems.problem import Problem
from harness.running.judge import Judge
from harness.running.outcome import Status

RULES = ("QUANT", "GEMM", "MOE")
SMALL = Problem(8, 128, 1024, 512, (64,) * 8, seed=1, version=2)
LARGE = Problem(32, 512, 7168, 2048, (256,) * 32, seed=1, version=2)
GROWTH: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {"experts": (8, 32, 128), "hidden": (1024, 2048, 4096), "rows": (128, 512, 1024)},
    "cuda": {
        "experts": (8, 32, 128, 384),
        "hidden": (1024, 2048, 4096, 7168),
        "rows": (512, 1024, 4096, 8192),
    },
}
"""What grows, alone: on a CPU from SMALL, on a GPU from a rank of a model. `rows` are those of the first expert."""


@dataclass(frozen=True)
class Judged:
    """A problem, and how long a rule took on it.

    Attributes:
        rule: its id.
        grown: what grows, and to how much: ("hidden", 4096).
        problem: its string.
        seconds: to make its numbers, run the candidate and judge what it returned; None where memory does not do.
    """

    rule: str
    grown: tuple[str, int]
    problem: str
    seconds: float | None


def problems(device: str) -> Iterator[tuple[tuple[str, int], Problem]]:
    """Yield what grows, and the problem."""
    base = SMALL if device == "cpu" else LARGE
    for name, sizes in GROWTH[device].items():
        for size in sizes:
            yield (name, size), grown(base, name, size)


def grown(base: Problem, name: str, size: int) -> Problem:
    """Return a problem with other experts that share the rows, another width of tokens, or other rows of its first expert."""
    if name == "experts":
        rows = max(1, sum(base.masked_m) // size)
        return replace(base, experts=size, capacity=max(base.capacity, rows), masked_m=(rows,) * size)
    if name == "hidden":
        return replace(base, hidden=size)
    return replace(base, capacity=max(base.capacity, size), masked_m=(size, *base.masked_m[1:]))


def measured(device: str, rules: Sequence[str] = RULES) -> Iterator[Judged]:
    """Judge each problem by each rule, torch as the candidate, and yield how long it took, the shorter of two times.

    Args:
        device: "cpu" or "cuda".
        rules: ids.

    Raises:
        RuntimeError: the candidate, which is right, was not judged so.
    """
    judge = Judge(EagerCuda() if device == "cuda" else Eager())
    for what, problem in problems(device):
        for rule in rules:
            try:
                seconds = min(_once(judge, rule, problem) for _ in range(2))
            except torch.OutOfMemoryError:
                yield Judged(rule, what, str(problem), None)
            else:
                yield Judged(rule, what, str(problem), seconds)


def _once(judge: Judge, rule: str, problem: Problem) -> float:
    start = _now()
    outcome = judge.judge(rule, str(problem))
    if "OutOfMemoryError" in outcome.error:
        torch.cuda.empty_cache()
        raise torch.OutOfMemoryError
    if outcome.status != Status.JUDGED or outcome.illegal:
        raise RuntimeError(f"{rule} on {problem}: expected a right kernel to be judged right, got {outcome}")
    return _now() - start


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

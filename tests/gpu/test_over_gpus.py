"""NCCL EP and the ElasticBuffer of DeepEP 2.x as they are installed, on two GPUs: drawn problems, planted faults."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from harness.candidates import load_candidate, support_of
from harness.candidates.over_ranks import OverRanks
from harness.faults.named import plant
from harness.running.judge import Judge
from tests.ranks.planted import FAULTS, carries

DRAWN = 12


@pytest.fixture(scope="module", params=["nccl-ep", "deepep-elastic"])
def candidate(request: pytest.FixtureRequest) -> Iterator[OverRanks]:
    over: OverRanks = load_candidate(request.param)
    if reason := support_of(over).reason:
        pytest.skip(reason)
    yield over
    over.close()


def drawn(seed: int) -> str:
    """A problem of 2 to 64 experts and 0 to 128 tokens of a rank; kernels are compiled for each, so there are few."""
    draw = random.Random(seed)
    experts, capacity = draw.choice((2, 8, 64)), draw.choice((1, 8, 24, 128))
    return f"{experts}x{capacity}x2048x16:{draw.randint(0, capacity)}*{experts}:normal:{seed}"


@pytest.mark.parametrize("rule", ["DISPATCH", "COMBINE", "EP"])
def test_drawn_problems_pass(candidate: OverRanks, rule: str) -> None:
    judge = Judge(candidate, threads=1, probe=False)
    for seed in range(DRAWN):
        outcome = judge.judge(rule, drawn(seed))
        assert outcome.status == "judged", (drawn(seed), outcome)
        assert not outcome.illegal, (drawn(seed), outcome)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(candidate: OverRanks, name: str) -> None:
    if not carries(candidate, FAULTS[name]):
        pytest.skip("it has no such transport")
    judge = Judge(plant(candidate, name), threads=1, probe=False)
    assert any(judge.judge(FAULTS[name].killed_by, drawn(seed)).illegal for seed in range(DRAWN))

"""The rules on real ranks: eager over gloo passes them, on two processes and on four, and every planted fault is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.candidates.over_ranks import EagerGloo
from harness.faults.fault import Fault
from harness.faults.named import plant
from harness.problems.layer import LayerProblem
from harness.problems.problem import parse_problem
from harness.running.judge import Judge
from tests.ranks.planted import FAULTS, caught_and_named

RULES = ("DISPATCH", "COMBINE", "EP", "ROUTE")
PROBLEMS = (
    "8x24x128x64:24*8:normal:5",
    "6x9x256x128:9*6:normal:1",
    "8x40x128x128:3*8:normal:2",
    "3x7x64x32:7,0,3:normal:9",  # three experts are on one rank, which is all processes together
    "4x20x128x64:5,0,7,20:normal:0",
)
NAMED = {  # a diagnosis costs some twenty calls of all ranks; `long` has it for every fault
    "counts_of_previous_call": PROBLEMS[:1],
    "weights_applied_twice": PROBLEMS[:1],
    "logfmt_sign_lost": PROBLEMS[:1],
}


@pytest.fixture(scope="module", params=[2, 4])
def candidate(request: pytest.FixtureRequest, two_over_gloo: Callable[[], EagerGloo]) -> Iterator[EagerGloo]:
    if request.param == 2:
        yield two_over_gloo()
        return
    over = EagerGloo(request.param)
    yield over
    over.close()


def test_the_rules_find_nothing(candidate: EagerGloo) -> None:
    judge = Judge(candidate, threads=1, probe=False)
    ranks = set()
    for problem in PROBLEMS:
        ranks.add(LayerProblem(parse_problem(problem), candidate.traits).ranks)
        for rule in RULES:
            outcome = judge.judge(rule, problem)
            assert outcome.status == "judged", outcome
            assert not outcome.illegal, outcome
    assert ranks >= {1, candidate.traits.ranks}, "as many ranks as processes, and one over all of them"


def caught(candidate: EagerGloo, fault: Fault) -> bool:
    judge = Judge(plant(candidate, fault.name), threads=1, probe=False)
    outcomes = (judge.judge(fault.killed_by, problem) for problem in PROBLEMS)
    return any(outcome.fails for outcome in outcomes)


def test_every_planted_fault_of_dispatch_and_combine_is_caught(candidate: EagerGloo) -> None:
    assert len(FAULTS) > 40
    assert [name for name, fault in FAULTS.items() if not caught(candidate, fault)] == []


@pytest.mark.parametrize("name", NAMED)
def test_a_planted_fault_is_named(candidate: EagerGloo, name: str) -> None:
    assert name in caught_and_named(candidate, name, NAMED[name])[1]


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_named(candidate: EagerGloo, name: str) -> None:
    assert {name, *FAULTS[name].same_as} & set(caught_and_named(candidate, name, PROBLEMS)[1])

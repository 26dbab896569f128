"""The problems that mutants of one rule are judged on: drawn as `harness check` draws them, the quick ones first."""

from __future__ import annotations

import zlib

from harness.candidates.protocol import Traits
from harness.problems.problem import Problem
from harness.problems.profiles import Profile
from harness.rules import Rule
from harness.running.misfit import misfit
from harness.running.search import ROUND

QUICK = 16 << 20  # multiply-adds of one GEMM: some 20 ms of judging on one core


def drawn_problems(rule: Rule, traits: Traits, profile: Profile, seed: int = 0) -> list[Problem]:
    """Return as many problems as `harness check` with this profile draws for a rule, from the same strategy.

    In rounds of ten: from the eleventh example on hypothesis follows each one with up to five small variations of it,
    which is good for a search but leaves 46 really different problems among 144.
    """
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as hypothesis_seed

    from harness.problems.strategies import only_the_seed, problems

    wanted = 1 if rule.once else max(profile.least, round(profile.examples * rule.share))
    drawn: dict[Problem, None] = {}
    for number in range(
        2 * wanted // ROUND
    ):  # each round starts with the same smallest example, and few have it as well
        if len(drawn) >= wanted:
            break

        @hypothesis_seed(zlib.crc32(f"{rule.id} {seed} {number}".encode()))
        @settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            derandomize=False,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        @given(problems(rule.drawn, traits, profile))
        def draw(problem: Problem) -> None:
            if not misfit(problem, rule, traits):
                drawn[problem] = None

        with only_the_seed():
            draw()
    return list(drawn)[:wanted]


def quick_first(drawn: list[Problem]) -> list[Problem]:
    """Return the same problems in the order in which mutants meet them.

    Those that cost little keep the order in which they were drawn, the rest follows by rising cost: a fault that any
    problem shows is killed by a quick one, a fault that needs a large extent gets to it. Problems without a valid row,
    in which there is nothing to see, come last.
    """
    ordered = sorted(drawn, key=lambda p: max(work(p), QUICK))
    return sorted(ordered, key=lambda p: p.tokens == 0)


def work(problem: Problem) -> int:
    """Return the multiply-adds of the first GEMM."""
    return problem.experts * problem.capacity * problem.hidden * problem.inter * 2

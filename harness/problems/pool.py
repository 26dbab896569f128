"""Problems of a candidate whose kernels are compiled for each shape: they have those shapes that it declares (Traits.shapes)."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.candidates.protocol import Traits
from harness.problems.problem import Problem
from harness.problems.profiles import Profile

Shape = tuple[int, int, int]
"""Experts, hidden and inter."""


def pool_of(traits: Traits, profile: Profile) -> list[Shape]:
    """Return the shapes of a profile's problems, the smallest first; the smallest of all where none is small enough."""
    every = sorted(_shapes(traits), key=math.prod)

    def fits(shape: Shape) -> bool:
        experts, hidden, inter = shape
        small = experts <= profile.experts and hidden <= profile.k and inter <= min(profile.n, profile.k)
        return small and math.prod(shape) * traits.m_multiple * 2 <= profile.work << 20

    return [shape for shape in every if fits(shape)] or every[:1]


def in_pool(problem: Problem, traits: Traits) -> Problem:
    """Return a problem with the nearest of the candidate's shapes, itself where it takes any.

    Experts that are left out take their rows with them; those that come in have none.
    """
    if not traits.shapes:
        return problem
    wanted = problem.experts, problem.hidden, problem.inter

    def distance(shape: Shape) -> float:
        return sum(abs(math.log2(have / want)) for have, want in zip(shape, wanted, strict=True))

    experts, hidden, inter = min(_shapes(traits), key=distance)
    masked_m = (*problem.masked_m, *(0,) * (experts - problem.experts))[:experts]
    return replace(problem, experts=experts, hidden=hidden, inter=inter, masked_m=masked_m)


def another(problem: Problem, traits: Traits) -> Problem:
    """Return the same problem with another hidden: the next one that the candidate takes.

    Of a candidate with few shapes it is another of them with as many experts, of the same inter where there is one, or the
    same where there is none.
    """
    if not traits.shapes:
        return replace(problem, hidden=problem.hidden + traits.k_multiple)
    own = problem.experts, problem.hidden, problem.inter
    others = sorted(s for s in _shapes(traits) if s[0] == problem.experts and s != own)
    others = [s for s in others if s[2] == problem.inter] or others
    experts, hidden, inter = others[problem.seed % len(others)] if others else own
    return replace(problem, experts=experts, hidden=hidden, inter=inter)


def _shapes(traits: Traits) -> list[Shape]:
    """Return the declared shapes, of which JSON may have made lists."""
    return [(experts, hidden, inter) for experts, hidden, inter in traits.shapes]

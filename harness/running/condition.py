"""What failing problems have in common that no other problem has: "an expert has one row". Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from harness.problems.problem import OPTIONS, Problem
from harness.problems.traps import TRAPS

_MULTIPLES = (128, 64, 32, 16)
_LEAST = 2  # problems of either kind, for what they have in common to be more than chance
Extent = Callable[[Problem], int]
Condition = Callable[[Problem], bool]
_EXTENTS: dict[str, Extent] = {
    "the number of experts": lambda p: p.experts,
    "capacity": lambda p: p.capacity,
    "the most rows of an expert": lambda p: max(p.masked_m),
    "the number of tokens": lambda p: p.tokens,
    "hidden": lambda p: p.hidden,
    "inter": lambda p: p.inter,
}


def common(failing: Sequence[Problem], others: Sequence[Problem]) -> str:
    """Return what holds for all failing problems and for no other one, in words; "" where nothing known does.

    Args:
        failing: problems that fail alike.
        others: problems that do not.
    """
    if len(failing) < _LEAST or len(others) < _LEAST:
        return "" if others or len(failing) < _LEAST else "a stage is called"
    for words, holds in _conditions(failing, others):
        if all(map(holds, failing)) and not any(map(holds, others)):
            return words
    return ""


def _conditions(failing: Sequence[Problem], others: Sequence[Problem]) -> Iterator[tuple[str, Condition]]:
    """Yield what may be the condition, the plainest first."""
    for count in sorted({count for problem in failing for count in problem.masked_m}):
        what = {0: "no row", 1: "one row"}.get(count, f"{count} rows")
        yield f"an expert has {what}", partial(_has_rows, count)
    for name in (*TRAPS, *OPTIONS):
        yield f"the problem has {name}", partial(_has_extra, name)
    for name, of in _EXTENTS.items():
        for multiple in _MULTIPLES:
            yield f"{name} is no multiple of {multiple}", partial(_is_ragged, of, multiple)
        least, most = min(map(of, failing)), max(map(of, failing))
        lowest, highest = min(map(of, others)), max(map(of, others))
        if least > highest:
            yield f"{name} is {least} or more ({highest} is right)", partial(_is_within, of, least, most)
        if most < lowest:
            yield f"{name} is {most} or less ({lowest} is right)", partial(_is_within, of, least, most)


def _has_rows(count: int, problem: Problem) -> bool:
    return count in problem.masked_m


def _has_extra(name: str, problem: Problem) -> bool:
    return name in problem.extras


def _is_ragged(of: Extent, multiple: int, problem: Problem) -> bool:
    return of(problem) % multiple != 0


def _is_within(of: Extent, least: int, most: int, problem: Problem) -> bool:
    return least <= of(problem) <= most

"""One search of hypothesis: ten drawn problems, and the shrinking of one that fails. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.problems.problem import Problem

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

ROUND = 10
"""Examples of one search of hypothesis. From the eleventh on it follows each with up to five small variations of it: of 144
problems of one rule 46 were really different. A failing one is shrunk all the same."""


def search(take: Callable[[Problem], None], drawn: SearchStrategy[Problem], start: int) -> None:
    """Hand ten problems that hypothesis draws from a seed to a function, and shrink one for which it raises."""
    from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

    from harness.problems.strategies import only_the_seed

    drawing = settings(
        max_examples=ROUND,
        database=None,  # the record's reproduce command repeats a failure; nothing is left in the user's folder
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        print_blob=False,
        report_multiple_bugs=False,
    )
    with only_the_seed():
        seed(start)(drawing(given(drawn)(take)))()

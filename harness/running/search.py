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


class IllegalError(Exception):
    """Raised for a problem that fails, so that hypothesis shrinks it."""


class _Ended(BaseException):
    """Carries whatever else was raised through hypothesis, which would take it for a failing problem and shrink that."""


def search(take: Callable[[Problem], None], drawn: SearchStrategy[Problem], start: int) -> None:
    """Hand ten problems that hypothesis draws from a seed to a function, and shrink one for which it raises IllegalError.

    Raises:
        IllegalError: a failing problem has been shrunk; the function got the smallest one last.
        BaseException: whatever else the function raised, at once: a defect of the harness, a test's time limit.
    """
    from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
    from hypothesis.errors import Flaky

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

    def taken(problem: Problem) -> None:
        try:
            take(problem)
        except IllegalError:
            raise
        except BaseException as other:
            raise _Ended(other) from other

    try:
        with only_the_seed():
            seed(start)(drawing(given(drawn)(taken)))()
    except _Ended as ended:
        raise ended.args[0] from None
    except Flaky as flaky:  # a problem failed that had been right before, or the other way round: it did fail
        raise IllegalError from flaky

"""Is a server further from another one than that one is from itself? Two tests with stated error rates. Standard library only.

Per question there are two numbers: `across`, the KL between the servers, and `within`, that of the first against itself.
Where the second server is like the first, both come from the same distribution, whatever it is: that is the null
hypothesis of both tests. Differences below `allowed` count as none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ERROR = 1e-4
"""Chance of FAIL for a server that is like the other one, whenever the comparison stops; each test has half of it."""
TIMES = 3.0
"""How much further than from itself a question may be: right kernels of different kinds differ more than runs of one."""
LIKELY = 0.9
"""The share of questions further apart that the first test is made for."""
RANKS = (4, 8, 16)
"""How many questions the second test takes together: fewer are what rare noise makes, however large it is."""


@dataclass(frozen=True)
class Compared:
    """Mean KL of one question in nats per token: between the servers, and of the first server against itself."""

    across: float
    within: float


@dataclass(frozen=True)
class Tested:
    """What the tests found.

    Attributes:
        further, nearer: questions further apart than TIMES what the first server is from itself, and the reverse.
        evidence: of the first test; no larger than c but with a chance of 1 / c, under the null hypothesis.
        tail: p-value of the second test; 1 before the last question.
        tail_questions: how many of the questions furthest apart gave it.
    """

    further: int
    nearer: int
    evidence: float
    tail: float = 1.0
    tail_questions: int = 0

    @property
    def everywhere(self) -> bool:
        """Whether the first test finds that the servers differ."""
        return self.evidence >= 2 / ERROR

    @property
    def in_a_few(self) -> bool:
        """Whether the second test does."""
        return self.tail <= ERROR / 2


def needed() -> int:
    """Return how many questions the first test needs, all of them further apart."""
    return math.ceil(math.log(2 / ERROR) / math.log(2 * LIKELY))


def judged(questions: Sequence[Compared], allowed: float, *, last: bool = True) -> Tested:
    """Test the questions compared so far.

    The first test bets on "further", after every question if one likes. For servers alike it is as likely as "nearer", so
    the capital, which grows 2 * LIKELY times or shrinks to 2 * (1 - LIKELY), ever reaches c with a chance of at most 1 / c
    (Ville's inequality). It sees what is wrong everywhere.

    The second, after the last question, sees what is wrong in a few: the k questions furthest apart are all r times as far
    as TIMES the largest `within`, or more. For servers alike the chance of that is at most (1 + r) ** -k where the noise's
    tail is no heavier than 1 / x. The best of RANKS is taken, times their number. Any noise at all gives at most 2 ** -k, so
    it is believed only where it is found again (`confirmed`).

    Args:
        questions: in order.
        allowed: nats per token that count as none.
        last: whether no more will come.
    """
    further = sum(q.across > max(TIMES * q.within, allowed) for q in questions)
    nearer = sum(q.within > max(TIMES * q.across, allowed) for q in questions)
    evidence = (2 * LIKELY) ** further * (2 * (1 - LIKELY)) ** nearer
    tail, count = _tail(questions, questions, allowed) if last else (1.0, 0)
    return Tested(further, nearer, evidence, tail, count)


def confirmed(questions: Sequence[Compared], again: Sequence[Compared], allowed: float) -> bool:
    """Return whether the second test finds the same when the questions are asked again, above the noise of both times."""
    return _tail(again, [*questions, *again], allowed)[0] <= ERROR / 2


def _tail(questions: Sequence[Compared], noise: Sequence[Compared], allowed: float) -> tuple[float, int]:
    """Return the second test's p-value and how many questions gave it."""
    if len(questions) < min(RANKS):
        return 1.0, 0
    base = max(allowed, TIMES * max(q.within for q in noise))
    ordered = sorted((q.across for q in questions), reverse=True)
    ratios = {k: ordered[k - 1] / base for k in RANKS if k <= len(ordered)}
    tail, count = min(((1 + r) ** -k if r > 1 else 1.0, k) for k, r in ratios.items())
    return min(1.0, len(RANKS) * tail), count

"""Tests on pairs that may be looked at after every pair and stopped at any of them.

An e-value is what a bettor's stake of 1 has become who bets against the hypothesis at fair odds: where the hypothesis
holds, it ever reaches 1 / alpha with a probability of at most alpha (Ville 1939), however often one looks and whatever
makes one stop. So no look has to be planned, and a stated error is one of the whole run.

Sources: Robbins 1970 (mixtures over the alternatives); Krichevsky and Trofimov 1981 (the mixture of `sign_e_value`);
Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting, JRSS B 86:1 (the bets of
`drop_below` and `drop_above`, and the confidence sequence that they invert to); Ramdas, Gruenwald, Vovk and Shafer 2023,
Game-theoretic statistics and safe anytime-valid inference, Statistical Science 38:4 (a survey).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from harness.gsm8k.statistics import Interval

BETS = tuple(0.95 * (2 / 3) ** i for i in range(9))
"""Shares of the largest bet that cannot ruin; the stake is divided evenly among them."""
_BISECTIONS = 40


@cache
def sign_e_value(lost: int, gained: int) -> float:
    """Return the evidence that `lost` and `gained` are not equally likely, in either direction.

    The likelihood of the pairs that differ, averaged over every chance of a loss with the weight Beta(1/2, 1/2), over
    their likelihood at one half. `2^n / sqrt(pi n)` where all n pairs differ in one direction.
    """
    n = lost + gained
    mixed = math.lgamma(lost + 0.5) + math.lgamma(gained + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
    return math.exp(mixed + n * math.log(2))


def drop_below(lost: int, gained: int, n: int, drop: float) -> float:
    """Return the evidence that less is lost than `drop`: the e-value of "the drop is `drop` or more".

    Args:
        lost: pairs of which only the reference was right.
        gained: pairs of which only the judged run was right.
        n: all pairs.
        drop: share right of the reference less that of the judged run, above -1 and below 1.
    """
    return math.fsum(_wealth(bet / (1 - drop), lost, gained, n, drop) for bet in BETS) / len(BETS)


def drop_above(lost: int, gained: int, n: int, drop: float) -> float:
    """Return the evidence that more is lost than `drop`: the e-value of "the drop is `drop` or less"."""
    return math.fsum(_wealth(-bet / (1 + drop), lost, gained, n, drop) for bet in BETS) / len(BETS)


def _wealth(bet: float, lost: int, gained: int, n: int, drop: float) -> float:
    """Return what the stake became: each pair multiplies it by 1 + bet * (drop - what this pair lost)."""
    tied = (n - lost - gained) * math.log1p(bet * drop)
    log = tied + lost * math.log1p(bet * (drop - 1)) + gained * math.log1p(bet * (drop + 1))
    return math.exp(min(log, 700.0))


def drop_interval(lost: int, gained: int, n: int, alpha: float) -> Interval:
    """Return the drops that no bet has refuted at `alpha` on either side: at every n at once they hold the true one."""
    if n == 0:
        return Interval(-1.0, 1.0)
    return Interval(
        _edge(lambda drop: drop_above(lost, gained, n, drop) >= 1 / alpha, -1.0, (lost - gained) / n),
        _edge(lambda drop: drop_below(lost, gained, n, drop) >= 1 / alpha, 1.0, (lost - gained) / n),
    )


def _edge(refuted: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return where refutation ends between a drop that may be refuted and one that is not."""
    if outside == inside:
        return inside
    for _ in range(_BISECTIONS):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if refuted(middle) else (outside, middle)
    return inside

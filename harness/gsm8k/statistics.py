"""Intervals and tests for shares of questions. Exact where a verdict hangs on it; the standard library only.

Sources: Wilson 1927 (interval of a share); Clopper and Pearson 1934 (exact binomial); McNemar 1947 with the mid-p of
Fagerland, Lydersen and Laake 2013 (BMC Med Res Methodol 13:91); Bonett and Price 2012 (interval of a paired
difference); Connor 1987 (power of McNemar's test); Fisher 1935 (shares of two parts of a whole); Wilcoxon 1945 with Mann
and Whitney 1947 (ranks).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

_NORMAL = NormalDist()
MOST_QUESTIONS = 10_000_000
"""Answers larger than this are given as "no number of questions"."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Return whether the value is inside, its ends included."""
        return self.low <= value <= self.high


@cache
def quantile(probability: float) -> float:
    """Return the quantile of the standard normal distribution."""
    return _NORMAL.inv_cdf(probability)


def wilson(right: float, n: float, confidence: float = 0.95) -> Interval:
    """Return Wilson's interval of a share. `right` may be fractional (a mean over repeats of the same questions)."""
    if n <= 0:
        return Interval(0.0, 1.0)
    if not 0 <= right <= n:
        raise ValueError(f"wilson: right must be between 0 and n, got {right} of {n}")
    z = quantile(0.5 + confidence / 2)
    share, zz = right / n, z * z / n
    middle = (share + zz / 2) / (1 + zz)
    half = z * math.sqrt(share * (1 - share) / n + zz / (4 * n)) / (1 + zz)
    return Interval(
        0.0 if right == 0 else max(0.0, middle - half), 1.0 if right == n else min(1.0, middle + half)
    )


def questions_to_decide(share: float, threshold: float, confidence: float = 0.95) -> int | None:
    """Return how many questions make Wilson's interval of this share leave the threshold; None if no number does."""
    if share == threshold:
        return None
    z = quantile(0.5 + confidence / 2)
    # The score interval leaves the threshold where its z-test rejects: n (share - t)^2 > z^2 t (1 - t).
    n = z * z * threshold * (1 - threshold) / (share - threshold) ** 2
    return math.floor(n) + 1 if n < MOST_QUESTIONS else None


def log_binomial(k: int, n: int, p: float) -> float:
    """Return the log of the probability of exactly k of n."""
    if p in (0.0, 1.0):
        return 0.0 if k == round(n * p) else -math.inf
    if not 0 <= k <= n:
        return -math.inf
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose + k * math.log(p) + (n - k) * math.log1p(-p)


def at_most(k: int, n: int, p: float) -> float:
    """Return the exact probability of k or fewer of n, to a relative error near 1e-12 in the tail as well."""
    if k >= n or k < 0:
        return float(k >= n)
    return 1.0 - _tail(n - k - 1, n, 1 - p) if k > n * p else _tail(k, n, p)


def at_least(k: int, n: int, p: float) -> float:
    """Return the exact probability of k or more of n."""
    return at_most(n - k, n, 1 - p)


def _tail(k: int, n: int, p: float) -> float:
    """Add up the probabilities of k, k - 1, ... of n, where they only get smaller; 1 - p must not be 0."""
    if p == 0.0:
        return 1.0
    term = total = math.exp(log_binomial(k, n, p))
    while k > 0 and term > total * 1e-18:
        term *= k * (1 - p) / ((n - k + 1) * p)
        total += term
        k -= 1
    return total


@cache
def refuted_at(n: int, expected: float, alpha: float) -> int:
    """Return the most right answers of n that refute an expected share at alpha; -1 if not even none would.

    The exact one-sided binomial test: `at_most(k, n, expected) < alpha`.
    """
    refuted, open_ = -1, n
    while open_ - refuted > 1:
        middle = (refuted + open_) // 2
        if at_most(middle, n, expected) < alpha:
            refuted = middle
        else:
            open_ = middle
    return refuted


@cache
def exceeded_at(n: int, limit: float, alpha: float) -> int:
    """Return the fewest of n that show a true share above the limit at alpha; n + 1 if not even all would."""
    return n - refuted_at(n, 1 - limit, alpha)


def drawn_at_most(k: int, drawn: int, marked: int, n: int) -> float:
    """Return the exact probability that at most k of `drawn` are marked, drawn from n of which `marked` are (Fisher)."""
    first, last = max(0, drawn + marked - n), min(drawn, marked)
    if not 0 <= drawn <= n or not 0 <= marked <= n:
        raise ValueError(f"drawn_at_most: drawn and marked must fit into n, got {drawn}, {marked} of {n}")
    if k < first or k >= last:
        return float(k >= last)
    if k > (drawn * marked) / n:  # the shorter tail, for its relative precision
        return 1.0 - drawn_at_most(drawn - k - 1, drawn, n - marked, n)
    term = total = math.exp(
        _log_choose(marked, k) + _log_choose(n - marked, drawn - k) - _log_choose(n, drawn)
    )
    for i in range(k, first, -1):
        term *= i * (n - marked - drawn + i) / ((marked - i + 1) * (drawn - i + 1))
        total += term
        if term < total * 1e-18:
            break
    return min(1.0, total)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def rank_sum_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the one-sided p of the rank-sum test that `second` is larger only by chance; ties count half.

    The normal approximation with the variance of ties; 1 where a side has fewer than five values.
    """
    m, n = len(first), len(second)
    if min(m, n) < 5:
        return 1.0
    ties = Counter([*first, *second])
    below, ranks = 0, {}
    for value, times in sorted(ties.items()):
        ranks[value] = below + (times + 1) / 2
        below += times
    total = m + n
    spread = total + 1 - math.fsum(t**3 - t for t in ties.values()) / (total * (total - 1))
    if spread <= 0:
        return 1.0
    surplus = math.fsum(ranks[v] for v in second) - n * (total + 1) / 2
    return 0.5 * math.erfc((surplus - 0.5) / math.sqrt(m * n * spread / 12) / math.sqrt(2))


def mcnemar_mid_p(lost: int, gained: int) -> float:
    """Return the one-sided mid-p of McNemar's test that the questions lost outnumber those gained only by chance."""
    n = lost + gained
    if n == 0:
        return 0.5
    return max(0.0, at_most(gained, n, 0.5) - 0.5 * math.exp(log_binomial(gained, n, 0.5)))


def paired_interval(lost: int, gained: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Bonett and Price's interval of the paired difference (gained - lost) / n."""
    if n <= 0 or lost < 0 or gained < 0 or lost + gained > n:
        raise ValueError(f"paired_interval: lost and gained must fit into n, got {lost}, {gained} of {n}")
    z = quantile(0.5 + confidence / 2)
    down, up = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Interval(max(-1.0, up - down - half), min(1.0, up - down + half))


def mean_interval(values: list[float], confidence: float = 0.95) -> Interval:
    """Return the normal interval of a mean, for paired differences of means over repeats (one value a question)."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / max(1, n - 1)
    half = quantile(0.5 + confidence / 2) * math.sqrt(variance / n)
    return Interval(mean - half, mean + half)


def smallest_visible_drop(
    n: int, flip_noise: float, confidence: float = 0.95, power: float = 0.8
) -> float | None:
    """Return the smallest drop that n paired questions find with this power, one-sided; None if not even all would.

    `flip_noise` is the share of questions whose result changes between two runs of the same model.
    """
    low, high = 0.0, 1.0 - flip_noise
    if n <= 0 or questions_to_see(high, flip_noise, confidence, power) > n:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        if questions_to_see(middle, flip_noise, confidence, power) > n:
            low = middle
        else:
            high = middle
    return high


def questions_to_see(drop: float, flip_noise: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """Return how many paired questions find a drop of this size (Connor), one-sided at (1 + confidence) / 2."""
    if drop <= 0:
        return math.inf
    discordant = min(1.0, flip_noise + drop)
    z_test, z_power = quantile(0.5 + confidence / 2), quantile(power)
    spread = z_test * math.sqrt(discordant) + z_power * math.sqrt(max(0.0, discordant - drop * drop))
    return (spread / drop) ** 2

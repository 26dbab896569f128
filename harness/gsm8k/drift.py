"""Whether answers depend on when they were asked: accuracy and length along the order of the requests.

The questions stand in a random order, so a healthy server's right and wrong answers are exchangeable, and Fisher's exact
test of two parts of the run holds at its error. Two tests share `DRIFT_ALPHA`: the best of a fixed set of change points,
each tested exactly, and the rank sum of the wrong answers (a trend).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import TYPE_CHECKING

from harness.gsm8k.judgement import CHANGED_LENGTH, DRIFT_ALPHA, WARNING_ALPHA
from harness.gsm8k.sample import length
from harness.gsm8k.statistics import drawn_at_most, rank_sum_p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gsm8k.sample import Sample

FEWEST = 32
SHORTEST = 8
"""Requests of the shorter part that a change point cuts off."""


@dataclass(frozen=True)
class Drift:
    """Accuracy along the requests. `p` is two-sided, for the smaller of the two tests, times two.

    `at` requests come before the likeliest change point, `right_before` of them right; `request` is the number of the
    first one behind it, from 1. `sudden`: a change point explains it better than a trend.
    """

    requests: int
    right: int
    p: float
    at: int = 0
    right_before: int = 0
    request: int = 0
    sudden: bool = True
    thirds: tuple[float, ...] = ()

    @property
    def certain(self) -> bool:
        """Whether this fails a run."""
        return self.p < DRIFT_ALPHA

    @property
    def parts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Right answers and requests before the change point, and behind it."""
        rest = self.right - self.right_before, self.requests - self.at
        return (self.right_before, self.at), rest

    def __str__(self) -> str:
        chance = f"chance {self.p:.1g}" if self.p > 1e-99 else "chance under 1e-99"
        (first, before), (second, after) = self.parts
        if not self.sudden:
            path = ", ".join(f"{share:.2f}" for share in self.thirds)
            return f"accuracy changes along the requests, {path} in the thirds of the run ({chance})"
        return (
            f"change point at request {self.request:,}: accuracy {first / before:.2f} in the {before:,} requests before it, "
            f"{second / after:.2f} in the {after:,} from there on ({chance})"
        )


def find_drift(asked: Sequence[Sample], metric: str) -> Drift | None:
    """Test accuracy against the order of the requests; None where there are too few to say.

    Args:
        asked: the answered samples in the order of their requests.
        metric: the extractor that counts.
    """
    right = [bool(s[metric]) for s in asked]
    n, total = len(right), sum(right)
    if n < FEWEST:
        return None
    before = [0, *accumulate(right)]
    places = change_points(n)
    change = min(_two_sided(before[at], at, total, n) for at in places) * len(places)
    hit = [float(i) for i, ok in enumerate(right) if ok]
    missed = [float(i) for i, ok in enumerate(right) if not ok]
    trend = 2 * min(rank_sum_p(hit, missed), rank_sum_p(missed, hit))
    p = min(1.0, 2 * min(change, trend))
    if p >= WARNING_ALPHA:
        return Drift(n, total, p)
    at = max(range(SHORTEST, n - SHORTEST + 1), key=lambda k: _likelihood(before[k], k, total, n))
    third = n // 3
    thirds = tuple(sum(part) / len(part) for part in (right[:third], right[third:-third], right[-third:]))
    return Drift(n, total, p, at, before[at], asked[at]["order"] + 1, change <= trend, thirds)


def change_points(n: int) -> list[int]:
    """Return the change points that are tested: 8, 16, 32, ... requests from either end, thirds and the half."""
    ends = [SHORTEST << i for i in range(n.bit_length()) if SHORTEST << i <= n // 2]
    near = {*ends, n // 3, n // 2}
    return sorted({*near, *(n - at for at in near)})


def _two_sided(right: int, at: int, total: int, n: int) -> float:
    """Return Fisher's exact p, two-sided as twice the smaller tail."""
    low = drawn_at_most(right, at, total, n)
    high = drawn_at_most(at - right, at, n - total, n)
    return min(1.0, 2 * min(low, high))


def _likelihood(right: int, at: int, total: int, n: int) -> float:
    """Return the log-likelihood of one accuracy before a change point and another behind it."""
    return _of_share(right, at) + _of_share(total - right, n - at)


def _of_share(right: int, n: int) -> float:
    if right in {0, n}:
        return 0.0
    return right * math.log(right / n) + (n - right) * math.log1p(-right / n)


def length_drift(asked: Sequence[Sample]) -> str:
    """Return a sentence where answers get much longer or shorter along the requests, else "".

    The medians of the first and the last third differ by `CHANGED_LENGTH`, and ranks exclude chance at `DRIFT_ALPHA`.
    A weak drift is none: a queue that fills changes the batches, and these change answers a little.
    """
    lengths = [length(s) for s in asked]
    third = len(lengths) // 3
    if third < FEWEST:
        return ""
    first, last = lengths[:third], lengths[-third:]
    small, large = sorted((median(first), median(last)))
    if large < CHANGED_LENGTH * max(1.0, small):
        return ""
    if 2 * min(rank_sum_p(first, last), rank_sum_p(last, first)) >= DRIFT_ALPHA:
        return ""
    return (
        f"the length of answers changes along the requests: median {median(first):,.0f} in the first third, "
        f"{median(last):,.0f} in the last"
    )

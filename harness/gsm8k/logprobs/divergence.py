"""How far two servers' next-token distributions are apart, from the likeliest tokens that each of them names.

A server names only its likeliest tokens, so the Kullback-Leibler divergence is bounded from below: it is the least that
agrees with what both servers said. Tokens that both name are compared one by one; those that only the first names are one
cell, which the second gives no more than its least likely named token times their number; all others are the last cell.
Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEAST = 1e-6
"""Smallest probability of a cell: named probabilities are rounded, so that what is left of 1 may be zero. No KL is above 13.8."""


@dataclass(frozen=True)
class Position:
    """What a server says about one place of a text.

    Attributes:
        token: the token that stands there, or that the server chose.
        top: natural logarithms of the probabilities of the likeliest tokens, by text; of `token` too.
    """

    token: str
    top: Mapping[str, float]

    @property
    def likeliest(self) -> str:
        """The token that greedy decoding would take."""
        return max(self.top, key=lambda token: self.top[token])

    @property
    def proper(self) -> bool:
        """Whether this is a distribution at all: NaN, and nothing likelier than one in a million, are none."""
        return bool(self.top) and all(map(math.isfinite, self.top.values())) and self.mass > LEAST

    @property
    def mass(self) -> float:
        """The probability of all named tokens together."""
        return sum(map(math.exp, self.top.values()))

    @property
    def unnamed(self) -> float:
        """The most that a token may have which is not named: no more than the likeliest ones, which `token` need not be of."""
        likeliest = [logprob for token, logprob in self.top.items() if token != self.token]
        return math.exp(min(likeliest, default=0.0))


@dataclass(frozen=True)
class Divergence:
    """Two distributions at one place: KL in nats, at least 0, and whether they have the same likeliest token."""

    token: str
    kl: float
    agree: bool


def divergence(p: Position, q: Position) -> Divergence:
    """Return the divergence of q from p, KL(p || q); `LEAST` where one of them is no distribution."""
    if not (p.proper and q.proper):
        return Divergence(p.token, -math.log(LEAST), agree=False)
    both = p.top.keys() & q.top.keys()
    pairs = [(math.exp(p.top[token]), math.exp(q.top[token])) for token in both]
    only = [math.exp(logprob) for token, logprob in p.top.items() if token not in both]
    p_left, q_left = 1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)
    if only:
        p_only = sum(only)
        most = min(len(only) * q.unnamed, max(1 - q.mass, 0.0))
        # Of what is possible, the share that makes the KL least.
        q_only = min(most, max(q_left, 0.0) * p_only / max(p_left, p_only))
        pairs.append((p_only, q_only))
        p_left, q_left = p_left - p_only, q_left - q_only
    pairs.append((p_left, q_left))
    floored = [(max(a, LEAST), max(b, LEAST)) for a, b in pairs]
    kl = sum(a * math.log(a / b) for a, b in floored)
    return Divergence(p.token, max(kl, 0.0), p.likeliest == q.likeliest)


def along(first: Sequence[Position], second: Sequence[Position]) -> list[Divergence]:
    """Return the divergences at every place up to the first whose tokens differ, that one included.

    Behind a different token the two servers read different texts, and their distributions may differ rightly. A server that
    says nothing at all where the first says something is as far as can be.
    """
    if first and not second:
        return [Divergence(first[0].token, -math.log(LEAST), agree=False)]
    found = []
    for p, q in zip(first, second, strict=False):
        found.append(divergence(p, q))
        if p.token != q.token:
            break
    return found


def mean_kl(found: Sequence[Divergence]) -> float:
    """Return the mean KL over places, in nats per token; 0 without places."""
    return sum(d.kl for d in found) / len(found) if found else 0.0

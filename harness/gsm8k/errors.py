"""What can go wrong with a request, how long each kind is retried, and one line per distinct error.

An error is never an answer: whatever ends up here is counted as unanswered, apart from right and wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum

from harness.records.parts.gsm8k import Gsm8kError

MAX_MESSAGE = 240
MAX_SAID = 4000
MAX_LINES = 20
_VARYING = re.compile(
    r"0x[0-9a-fA-F]+|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b|\b(?=\w*\d)[0-9a-zA-Z_-]{16,}\b|\d{5,}"
)


class Kind(StrEnum):
    """Five kinds of trouble, by what a retry can change. What is retried, and for how long: retrying.py."""

    AWAY = "away"
    """Refused, 429, 502, 503, 504: the server is loading, restarting or overloaded."""
    LOST = "lost"
    """Closed or reset before or within the response, an answer aborted, or 404 where answers came from before: what a
    server that ends, and a proxy before it, do."""
    BROKEN = "broken"
    """500, truncated JSON, `choices: []`, an error inside a 200: a bad answer, or a server that is about to end."""
    SLOW = "slow"
    """No complete answer in time. Each attempt costs the whole time-out."""
    REJECTED = "rejected"
    """400, 401, 404 and other 4xx, and redirects: the same request will be refused again. Never retried."""


ATTEMPTS = {Kind.AWAY: None, Kind.LOST: 8, Kind.BROKEN: 4, Kind.SLOW: 2, Kind.REJECTED: 1}
"""Attempts that may end in an error of this kind while the server answers others; None is bounded in seconds only."""

AWAY_STATUSES = frozenset({408, 425, 429, 502, 503, 504})


class RequestError(Exception):
    """One failed attempt.

    Attributes:
        kind: what a retry can change.
        retry_after: what the server asked for, in seconds.
        status: of the response; None where none came.
        said: the response's text, bounded and with secrets taken out: it may name the field that is refused.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        retry_after: float | None = None,
        status: int | None = None,
        said: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(one_line(message, MAX_MESSAGE - len(hint)) + hint)
        self.kind = kind
        self.retry_after = retry_after
        self.status = status
        self.said = said[:MAX_SAID]

    def again(self, *, kind: Kind | None = None, hint: str = "") -> RequestError:
        """Return the same error as another kind, or with a hint behind its message."""
        return RequestError(
            kind or self.kind,
            str(self),
            retry_after=self.retry_after,
            status=self.status,
            said=self.said,
            hint=f"; {hint}" if hint else "",
        )


def kind_of_status(status: int) -> Kind:
    """Return the kind of an HTTP status other than 200."""
    if status in AWAY_STATUSES:
        return Kind.AWAY
    return Kind.REJECTED if 300 <= status < 500 else Kind.BROKEN


def one_line(text: str, most: int = MAX_MESSAGE) -> str:
    """Return the text as one printable line of bounded length; control characters would let a server write to the terminal."""
    text = " ".join(text[: 4 * MAX_MESSAGE].split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else text[: most - 3] + "..."


class ErrorLog:
    """Counts errors by what they say, with request ids and other varying parts taken out."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], str] = {}
        self._count: Counter[tuple[str, str]] = Counter()
        self._gave_up: Counter[tuple[str, str]] = Counter()

    def add(self, error: RequestError) -> bool:
        """Count one failed attempt; True when nothing like it was seen before."""
        key = self._key(error)
        new = key not in self._first
        self._first.setdefault(key, str(error))
        self._count[key] += 1
        return new

    def give_up(self, error: RequestError) -> None:
        """Count one question that stays unanswered because of this error."""
        self._gave_up[self._key(error)] += 1

    def lines(self) -> list[Gsm8kError]:
        """Return the distinct errors, those that cost questions first, at most `MAX_LINES` and a line for the rest."""
        keys = sorted(self._count, key=lambda key: (-self._gave_up[key], -self._count[key], key))
        lines = [Gsm8kError(self._first[k], k[0], self._count[k], self._gave_up[k]) for k in keys[:MAX_LINES]]
        if rest := keys[MAX_LINES:]:
            count, gave_up = sum(self._count[k] for k in rest), sum(self._gave_up[k] for k in rest)
            lines.append(Gsm8kError(f"{len(rest)} further distinct errors", "other", count, gave_up))
        return lines

    @staticmethod
    def _key(error: RequestError) -> tuple[str, str]:
        return error.kind.value, _VARYING.sub("#", str(error))

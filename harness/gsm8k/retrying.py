"""Whether a question is asked again: a server that restarts is waited for, one that fails on a question is not.

A restart can cause every error but a refusal: a connection that is refused, closed or reset, a 500 or 503 of the dying
server or of the proxy before it, half an answer, an aborted one, silence. A single question can cause most of them too.
What tells the two apart is whether the server answers anything else meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.extras import MissingExtraError

try:
    import tenacity
except ModuleNotFoundError as error:
    raise MissingExtraError("harness.gsm8k", "gsm8k") from error

from harness.gsm8k.errors import ATTEMPTS, Kind, RequestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BACKOFF = tenacity.wait_exponential(multiplier=0.25, max=8.0) + tenacity.wait_random(0.0, 0.5)
CONTROL_S = 10.0

Request = tuple[str, bytes]
"""Path and body of a request."""


class Liveness:
    """Whether the server answers at all: by the last answer to anyone, else by one more request of a kind that it answered.

    Args:
        post: posts a request once; raises RequestError.
    """

    def __init__(self, post: Callable[[str, bytes], Awaitable[object]]) -> None:
        self._post = post
        self._answered_at = float("-inf")
        self._known: Request | None = None
        self._check: asyncio.Task[bool] | None = None

    def answered(self, path: str, body: bytes) -> None:
        """Note that a request was answered."""
        self._answered_at = time.monotonic()
        self._known = path, body

    def knows(self, path: str) -> bool:
        """Return whether answers came from this path before."""
        return self._known is not None and self._known[0] == path

    async def since(self, sent_at: float, *, unknown: bool, look: bool) -> bool:
        """Return whether the server has answered anything after this time.

        Args:
            sent_at: by time.monotonic().
            unknown: the answer where it has never answered anything.
            look: ask it if nobody knows; else what nobody knows is no.
        """
        if self._answered_at > sent_at:
            return True
        if self._known is None:
            return unknown
        if not look:
            return False
        if self._check is None or self._check.done():  # one for all that wonder
            self._check = asyncio.ensure_future(self._control(*self._known))
        return await asyncio.shield(self._check)

    def close(self) -> None:
        """Leave a check that is under way."""
        if self._check is not None:
            self._check.cancel()

    async def _control(self, path: str, body: bytes) -> bool:
        try:
            async with asyncio.timeout(CONTROL_S):
                await self._post(path, body)
        except (RequestError, TimeoutError):
            return False
        self.answered(path, body)
        return True


@dataclass
class Retries:
    """What one question has met so far. `retry_s`: seconds from its first failure to the start of its last attempt."""

    retry_s: float
    liveness: Liveness
    attempts: int = 0
    sent_at: float = 0.0
    _tally: Counter[Kind] = field(default_factory=Counter)
    _failed_at: float | None = None
    _alive_at: float | None = None

    def sends(self) -> int:
        """Count an attempt that starts now, and return its number."""
        self.attempts += 1
        self.sent_at = time.monotonic()
        return self.attempts

    def failed(self, error: RequestError) -> None:
        """Count the error in which an attempt ended."""
        self._tally[error.kind] += 1
        self._failed_at = time.monotonic() if self._failed_at is None else self._failed_at

    async def give_up(self, state: tenacity.RetryCallState) -> bool:
        """Return whether this error is the last word."""
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, RequestError) or error.kind is Kind.REJECTED:
            return True
        allowed, tally = ATTEMPTS[error.kind], self._tally[error.kind]
        fails_alone = allowed is not None and await self._fails_alone(error, look=tally >= allowed - 1)
        if error.kind is Kind.SLOW and allowed is not None and tally < allowed:
            return False  # its attempts alone may take longer than all retries may
        waited = time.monotonic() - (self._failed_at or time.monotonic())
        if waited + state.upcoming_sleep > self.retry_s:
            return True
        return fails_alone and allowed is not None and tally >= allowed

    async def _fails_alone(self, error: RequestError, *, look: bool) -> bool:
        """Return whether the server was seen alive before this attempt and is so after it.

        After it alone would not do: a server that has just come back has not been asked this question yet.
        """
        before = self._alive_at is not None and self._alive_at < self.sent_at
        # A connection that is closed before there was any answer says nothing; other errors were said by a server.
        unknown = error.kind is not Kind.LOST
        alive = await self.liveness.since(self.sent_at, unknown=unknown, look=look)
        self._alive_at = time.monotonic() if alive else None
        return before and alive


def pause(state: tenacity.RetryCallState) -> float:
    """Return the back-off in seconds, or what the server asked for with Retry-After if that is longer."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, RequestError) else None
    return max(BACKOFF(state), asked or 0.0)

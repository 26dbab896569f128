"""What a person sees while a run goes on: one line that is redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from harness.gsm8k.statistics import wilson
from harness.terminal import LiveLine

if TYPE_CHECKING:
    from collections.abc import Mapping

LINE_S = 10.0
BAR = 20
GROUND = 10  # answers before the time left is estimated


class Progress:
    """Running accuracy with its interval, rate and unanswered count. Writes to stderr, so stdout holds results only."""

    def __init__(self, total: int, metric: str, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = LiveLine(self._stream)
        self._total = total
        self._metric = metric
        self._started = self._shown = time.monotonic()
        self._new = self._done = self._right = self._unanswered = 0
        self._next_tenth = 1

    def add(self, sample: Mapping[str, Any], *, journaled: bool = False) -> None:
        """Count one finished question; a journaled one does not count for the rate."""
        self._done += 1
        self._new += not journaled
        self._unanswered += sample["error"] is not None
        self._right += bool(sample[self._metric])
        if journaled:
            return
        now = time.monotonic()
        if self._live.on:
            self._live.show(self._with_bar(now), now=self._done == self._total)
        elif now - self._shown >= LINE_S or self._done * 10 >= self._next_tenth * self._total * 5:
            # Elsewhere at the half, at the end, and every ten seconds: a CI log is read afterwards.
            self._next_tenth = self._done * 10 // (self._total * 5) + 1
            self._shown = now
            self._print(self.line(now))

    def line(self, now: float | None = None) -> str:
        """Return the state as one line."""
        now = time.monotonic() if now is None else now
        answered = self._done - self._unanswered
        parts = [f"{self._done:,}/{self._total:,}"]
        if answered:
            interval = wilson(self._right, answered)
            parts.append(f"accuracy {self._right / answered:.3f} ({interval.low:.3f} to {interval.high:.3f})")
        if self._new and now > self._started:
            rate = self._new / (now - self._started)
            parts.append(f"{rate:.1f}/s")
            if self._done < self._total and self._new >= GROUND:
                parts.append(f"{(self._total - self._done) / rate:.0f} s left")
        if self._unanswered:
            parts.append(f"{self._unanswered:,} unanswered")
        return ", ".join(parts)

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        self._live.clear()
        self._print(text)

    def close(self) -> None:
        """Leave the last state on a line of its own."""
        if self._live.on and self._done:
            self.say(self._with_bar(time.monotonic()))

    def _with_bar(self, now: float) -> str:
        filled = BAR * self._done // max(1, self._total)
        return f"[{'#' * filled}{'.' * (BAR - filled)}] {self.line(now)}"

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

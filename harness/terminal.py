"""What may be written to a terminal: colour or none, and one line of stderr that is redrawn in place. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

REDRAW_SECONDS = 0.1
_ERASE = "\r\x1b[K"


def colour() -> bool | None:
    """Return False where no colour may be written (NO_COLOR, TERM=dumb), None where a terminal gets it and a pipe does not.

    This is click's `color`. NO_COLOR counts with any value but the empty one (no-color.org).
    """
    return False if os.environ.get("NO_COLOR") or _dumb() else None


def columns(stream: TextIO) -> int:
    """Return the width of a terminal: COLUMNS, else what the terminal says, else 80."""
    if (asked := os.environ.get("COLUMNS", "")).isdigit() and int(asked):
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class LiveLine:
    """One line that is redrawn in place and never wraps; says nothing on a pipe and on a terminal that cannot redraw.

    Args:
        stream: where it is written; None for stderr.

    Attributes:
        on: whether it is shown at all.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self.on = self._stream.isatty() and not _dumb()
        self._drawn = False
        self._at = 0.0

    def show(self, text: str, *, now: bool = False) -> None:
        """Redraw the line, cut to the width of the terminal.

        Args:
            text: one line without escape codes.
            now: draw it even if the last time was less than REDRAW_SECONDS ago.
        """
        if not self.on or not (now or time.monotonic() >= self._at + REDRAW_SECONDS):
            return
        self._at, self._drawn = time.monotonic(), True
        # A character in the last column makes some terminals wrap.
        self._write(_ERASE + text[: columns(self._stream) - 1])

    def clear(self) -> None:
        """Take the line away, before anything else is printed."""
        if self._drawn:
            self._drawn = False
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Remaining:
    """Seconds left of work that is counted, None before there is ground for an estimate.

    Args:
        least: parts of the work that must be through, and a tenth of it.
    """

    def __init__(self, least: int = 10) -> None:
        self._least = least
        self._started = time.monotonic()

    def seconds(self, done: int, wanted: int) -> float | None:
        """Return the seconds that are left after `done` of `wanted` parts, all taken to be alike."""
        if done < self._least or done * 10 < wanted:
            return None
        return (time.monotonic() - self._started) / done * (wanted - done)


def one_line(text: str) -> str:
    """Return a message in one line, what cannot be printed in it written as escapes."""
    words = " ".join(text.splitlines())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in words
    )


def duration(seconds: float) -> str:
    """Return a duration as a person says it: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _dumb() -> bool:
    return os.environ.get("TERM") == "dumb"

"""SIGTERM ends a run as Ctrl-C does, with the record of what was found until then, and the exit code says which it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: whoever handles an interrupt handles this."""


_came = threading.Event()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While it lasts, SIGTERM raises TerminatedError in the main thread; not where the process was started to ignore it."""
    _came.clear()
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def note_sigterm() -> None:
    """Say that SIGTERM came, where somebody else handles it."""
    _came.set()


def by_sigterm() -> bool:
    """Return whether SIGTERM came since `sigterm_interrupts` began."""
    return _came.is_set()


def _end(_number: int, _frame: FrameType | None) -> None:
    note_sigterm()
    raise TerminatedError

"""What a run was started with, as its record says it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_given: ContextVar[Sequence[str] | None] = ContextVar("_given", default=None)


@contextmanager
def called_with(arguments: Sequence[str] | None) -> Iterator[None]:
    """While it lasts, the command line is `harness` with these arguments; None for those of the process."""
    token = _given.set(arguments)
    try:
        yield
    finally:
        _given.reset(token)


def command_line() -> list[str]:
    """Return the words of the command, `harness` first."""
    given = _given.get()
    return ["harness", *(sys.argv[1:] if given is None else given)]

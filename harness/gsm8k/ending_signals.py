"""Ctrl-C and SIGTERM end a run early, so that it still leaves a record."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from harness.ending import note_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable


class EndingSignals:
    """Turns Ctrl-C and SIGTERM into a cancelled task and a call; a second Ctrl-C kills as usual."""

    def __init__(self, note: Callable[[], None], task: asyncio.Task[None] | None) -> None:
        self._note = note
        self._task = task

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._terminate = signal.getsignal(signal.SIGTERM)
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
                self._loop.add_signal_handler(number, self._handle, number)

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _handle(self, number: signal.Signals) -> None:
        if number == signal.SIGTERM:
            note_sigterm()
        self._note()
        self._remove()
        if self._task is not None:
            self._task.cancel()

    def _remove(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
                if self._loop.remove_signal_handler(number) and number == signal.SIGTERM:
                    signal.signal(number, self._terminate)  # where --serve waits for it

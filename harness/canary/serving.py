"""An engine in a thread of its own: requests of the event loop join the running batch at its next step."""

from __future__ import annotations

import asyncio
import queue
import threading
import traceback
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.canary.generate import Engine, Step
    from harness.canary.logprobs import Spelling


@dataclass
class _Waiting:
    """A request as the engine's thread sees it, and where its steps go."""

    prompt: str
    options: dict[str, Any]
    steps: asyncio.Queue[Step | Exception]
    cancelled: bool = False


class EngineThread:
    """Drives an engine; every public method but `generate` is called from the event loop's thread.

    Attributes:
        error: why the engine died, "" while it lives. A candidate that crashes must not look like one that is wrong.
    """

    def __init__(self, engine: Engine) -> None:
        self.error = ""
        self._engine = engine
        self._incoming: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="canary engine", daemon=True)
        self._running: dict[int, _Waiting] = {}

    @property
    def spelling(self) -> Spelling:
        """The forms in which the API states the engine's tokens."""
        return self._engine.spelling

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; steps are delivered on the given loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step."""
        self._incoming.put(None)
        self._thread.join(timeout=30)

    async def generate(self, prompt: str, **options: Any) -> AsyncIterator[Step]:
        """Yield the steps of one answer.

        Args:
            prompt: text.
            options: of `Engine.add`.

        Raises:
            ValueError: the engine refuses the request (too long, for example).
            RuntimeError: the engine died.
        """
        waiting = _Waiting(prompt, options, asyncio.Queue())
        self._incoming.put(waiting)
        if self.error:
            raise RuntimeError(self.error)
        try:
            while True:
                step = await waiting.steps.get()
                if isinstance(step, Exception):
                    raise step
                yield step
                if step.finish_reason is not None:
                    return
        finally:
            waiting.cancelled = True

    def _run(self) -> None:
        try:
            while self._take_in():
                self._step()
        except Exception as error:  # noqa: BLE001 - a candidate may raise anything: every request hears of it
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name}"
            self.error = f"{type(error).__name__}: {error} ({where})"
            traceback.print_exc()
            for waiting in [*self._running.values(), *self._left()]:
                self._deliver(waiting, RuntimeError(self.error))

    def _take_in(self) -> bool:
        """Move what has arrived into the engine; wait where it has nothing to do. False to end."""
        while True:
            try:
                waiting = self._incoming.get(block=not self._running)
            except queue.Empty:
                return True
            if waiting is None:
                return False
            try:
                number = self._engine.add(waiting.prompt, **waiting.options)
            except ValueError as error:
                self._deliver(waiting, error)
                continue
            self._running[number] = waiting

    def _step(self) -> None:
        for number, waiting in list(self._running.items()):
            if waiting.cancelled:
                self._engine.cancel(number)
                del self._running[number]
        for step in self._engine.step():
            waiting = self._running[step.number]
            self._deliver(waiting, step)
            if step.finish_reason is not None:
                del self._running[step.number]

    def _left(self) -> list[_Waiting]:
        left = []
        while not self._incoming.empty():
            waiting = self._incoming.get()
            if waiting is not None:
                left.append(waiting)
        return left

    def _deliver(self, waiting: _Waiting, step: Step | Exception) -> None:
        self._loop.call_soon_threadsafe(waiting.steps.put_nowait, step)

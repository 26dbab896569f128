"""Many requests at once: a fixed number of workers, a queue in a stated order, and one way to stop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

Step = Callable[[], Awaitable[None]]


class Pool:
    """Runs steps in order with at most `concurrency` at once. `stop` takes no further step and abandons those in flight.

    What a step hands to `later` is done between the requests: answers that arrive together are judged after their
    workers have sent the next ones, while the server works.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._workers: list[asyncio.Task[None]] = []
        self._left: deque[Step] = deque()
        self._later: deque[Callable[[], None]] = deque()
        self._has_later = asyncio.Event()
        self.stopped = ""

    def stop(self, reason: str) -> None:
        """End the run of the steps; the first reason stays."""
        if not self.stopped:
            self.stopped = reason
            for worker in self._workers:
                worker.cancel()

    def end(self) -> None:
        """Take no further step; those in flight end as they would."""
        self._left.clear()

    def later(self, work: Callable[[], None]) -> None:
        """Do some work soon, in the order in which it was handed over, and before `run` returns."""
        self._later.append(work)
        self._has_later.set()

    async def run(self, steps: Iterable[Step]) -> None:
        """Run the steps until all are done or the pool is stopped. An exception in a step or in work ends the run with it."""
        queue = self._left = deque(steps)

        async def take_steps() -> None:
            while queue and not self.stopped:
                await queue.popleft()()

        self._workers = [
            asyncio.ensure_future(take_steps()) for _ in range(min(self._concurrency, len(queue)))
        ]
        work = asyncio.ensure_future(self._take_work())
        try:
            pending = {work, *self._workers}
            while pending > {work} and not (work.done() or self.stopped):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled():
                        task.result()
        finally:
            for task in (work, *self._workers):
                task.cancel()
            await asyncio.gather(work, *self._workers, return_exceptions=True)
            while self._later:  # what has arrived is kept, also when the run is interrupted
                self._later.popleft()()

    async def _take_work(self) -> None:
        while True:
            await self._has_later.wait()
            self._has_later.clear()
            while self._later:
                self._later.popleft()()
                await asyncio.sleep(0)

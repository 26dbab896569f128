"""Workers that take tasks from one queue, and the thread that asks them for single answers. Imports no torch.

Each worker has a thread here, which starts its candidate, hands it one task at a time and waits: the candidates compute in
processes of their own, on this machine or on another.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.candidates.errors import CandidateStartError
from harness.running.outcome import Description, Outcome
from harness.running.shared.tasks import Task

MOST_LOSSES = 5  # of the workers that had one task, after which it is given up
GONE_SECONDS = 600.0  # without any worker, after which the run is
LOOK_SECONDS = 0.2  # between two looks at whether any worker is left
RESTART_SECONDS = 1.0  # between two tries to start a worker again


class WorkerLostError(Exception):
    """The process or the machine of a worker is gone, and with it the task that it had. Not the candidate's doing."""


class Worker(Protocol):
    """Where one candidate lives and is judged; all methods but `stop` are called by one thread."""

    def start(self) -> Description:
        """Start the candidate, again after a loss. Raises CandidateStartError, UsageError and WorkerLostError."""

    def run(self, task: Task) -> list[Outcome]:
        """Judge a task, see `judge_task`. Raises WorkerLostError."""

    def diagnose(self, *asked: Any) -> list[dict[str, Any]]:
        """As `Session.diagnose`. Raises WorkerLostError."""

    def stop(self) -> None:
        """End what it is doing now, from another thread."""

    def close(self) -> None:
        """End it."""


@dataclass
class _Work:
    """What a worker is asked, and where its answer goes."""

    ask: Callable[[Worker], Any]
    live: bool = False  # somebody waits for it
    answer: Future[Any] = field(default_factory=Future)
    losses: int = 0


class Crew:
    """Several workers with the same candidate.

    Args:
        workers: who judges.
        nodes: machines of a cluster that they are on, 0 for this one.
        gone_seconds: how long to wait for a worker when all were lost.

    Attributes:
        description: of the candidate, the same at every worker.
        rerun: tasks that were given to another worker because the one that had it was lost.

    Raises:
        CandidateStartError: it cannot run here, or not everywhere, or is not the same everywhere.
        UsageError: there is no such candidate.
    """

    def __init__(
        self, workers: Sequence[Worker], *, nodes: int = 0, gone_seconds: float = GONE_SECONDS
    ) -> None:
        self.size, self.nodes, self.rerun = len(workers), nodes, 0
        self._workers, self._gone_seconds = workers, gone_seconds
        self._tasks: deque[_Work] = deque()
        self._live: deque[_Work] = deque()  # what somebody waits for, before any task
        self._changed = threading.Condition()
        self._closing = self._attentive = False
        self._started: list[Future[Description]] = [Future() for _ in workers]
        self._here = len(workers)  # workers that are not lost
        self._lonely_since = 0.0  # time.monotonic() of the last loss
        self._broken = ""  # why a worker could not be started later on
        self._ready = threading.Event()  # there is a description
        self._threads = [
            threading.Thread(target=self._serve, args=(worker, started), daemon=True)
            for worker, started in zip(workers, self._started, strict=True)
        ]
        for thread in self._threads:
            thread.start()
        try:
            self.description = self._agreed()
            self._ready.set()
        except BaseException:
            self.close()
            raise

    @property
    def queued(self) -> int:
        """Tasks that no worker has taken yet."""
        return len(self._tasks)

    def submit(self, task: Task) -> Future[list[Outcome]]:
        """Queue a task; its outcomes come in the order of its problems."""
        return self._queue(_Work(lambda worker: worker.run(task)))

    def ask(self, ask: Callable[[Worker], Any]) -> Any:
        """Have the next free worker answer, before all tasks, and wait for it.

        From then on one worker does nothing else, so that whoever shrinks a failing problem waits for no tasks, until
        `relax` is called.
        """
        self._attentive = True
        return self.wait(self._queue(_Work(ask, live=True)))

    def relax(self) -> None:
        """Let all workers take tasks again."""
        with self._changed:
            self._attentive = False
            self._changed.notify_all()

    def wait(self, answer: Future[Any]) -> Any:
        """Return an answer when it is there.

        Raises:
            CandidateStartError: the candidate was started later on and is another one there, or did not start.
            WorkerLostError: all workers are gone for long.
            Exception: what the worker raised.
        """
        while not wait([answer], timeout=LOOK_SECONDS).done:
            if not self._here and time.monotonic() - self._lonely_since > self._gone_seconds:
                raise WorkerLostError(f"all {self.size} workers are gone for {self._gone_seconds:g} s")
        if self._broken:
            raise CandidateStartError(self._broken)
        return answer.result()

    def close(self) -> None:
        """End all workers and drop what is queued."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._ready.set()
        for worker in self._workers:
            worker.stop()
        for thread in self._threads:
            thread.join(timeout=10)

    def _queue(self, work: _Work) -> Future[Any]:
        with self._changed:
            (self._live if work.live else self._tasks).append(work)
            self._changed.notify_all()
        return work.answer

    def _agreed(self) -> Description:
        """Return the description that the workers gave: all of this machine, of a cluster the first. Raises as the class does."""
        needed = self._started
        if self.nodes:  # others may use the rest of it now
            needed = [next(iter(wait(self._started, return_when=FIRST_COMPLETED).done))]
        first, *others = [started.result() for started in needed]
        for number, other in enumerate(others, start=2):
            if difference := differing(first, other):
                raise CandidateStartError(f"worker {number} has other {difference} than worker 1")
        return first

    def _serve(self, worker: Worker, started: Future[Description]) -> None:
        try:
            started.set_result(self._start(worker))
        except BaseException as error:  # noqa: BLE001 - for whoever waits for the start
            started.set_exception(error)
            self._broken = self._broken or str(error)
            return
        self._ready.wait()
        if not self._closing and (difference := differing(self.description, started.result())):
            self._broken = self._broken or f"a worker that started later has other {difference}"
        stays = False
        while (work := self._next(stays)) is not None:
            stays = work.live
            self._answer(worker, work)
        worker.close()

    def _start(self, worker: Worker) -> Description:
        """Start a worker, wherever there is room for it, however often that is lost. Raises CandidateStartError, UsageError."""
        while True:
            try:
                return worker.start()
            except WorkerLostError:
                if self._closing:
                    raise
                time.sleep(RESTART_SECONDS)

    def _next(self, stays: bool) -> _Work | None:
        """Return what is to be asked next, None at the end; a worker that `stays` takes no task while it may be needed."""
        with self._changed:
            while not self._closing:
                if self._live:
                    return self._live.popleft()
                if self._tasks and not (stays and self._attentive):
                    work = self._tasks.popleft()
                    if work.losses or work.answer.set_running_or_notify_cancel():
                        return work
                    continue  # nobody wants it any more
                self._changed.wait()
        return None

    def _answer(self, worker: Worker, work: _Work) -> None:
        try:
            answer = work.ask(worker)
        except WorkerLostError as error:
            work.losses += 1
            if work.losses >= MOST_LOSSES:
                work.answer.set_exception(WorkerLostError(f"{error}, the {work.losses}th time"))
            else:
                self._again(work)
            self._restart(worker)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the answer gets it
            work.answer.set_exception(error)
        else:
            work.answer.set_result(answer)

    def _again(self, work: _Work) -> None:
        with self._changed:
            self.rerun += 1
            (self._live if work.live else self._tasks).appendleft(work)
            self._changed.notify_all()

    def _restart(self, worker: Worker) -> None:
        """Start a lost worker again."""
        with self._changed:
            self._here -= 1
            self._lonely_since = time.monotonic()
        try:
            difference = differing(self.description, self._start(worker))
        except (CandidateStartError, WorkerLostError) as error:
            self._broken = self._broken or str(error)
            return
        if difference:
            self._broken = self._broken or f"a worker that was started again has other {difference}"
        with self._changed:
            self._here += 1


def differing(one: Description, other: Description) -> str:
    """Return in what two workers' candidates differ, "" where they are the same; free memory does not count."""
    differ = (n for n in ("traits", "stages", "findings") if getattr(one, n) != getattr(other, n))
    return next(differ, "bits on fixed operands" if one.fingerprint != other.fingerprint else "")

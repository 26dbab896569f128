"""Workers on this machine: a process each, on a GPU each where GPUs are asked for. Imports no torch."""

from __future__ import annotations

import os
from typing import Any

from harness.running.outcome import Description, Outcome
from harness.running.session import Child
from harness.running.shared.crew import WorkerLostError
from harness.running.shared.tasks import Task, judge_task


class LocalWorker:
    """One candidate in a process of this machine.

    Args:
        name: of the candidate, as on a command line.
        gpu: the only one that it sees, as CUDA_VISIBLE_DEVICES names it; "" leaves it all of them.
        threads: of torch, 0 for its own choice.
        memory_gib: limit of the process's data segment, 0 for none.
    """

    def __init__(self, name: str, gpu: str = "", *, threads: int = 0, memory_gib: float = 0) -> None:
        self._name, self._threads, self._memory_gib = name, threads, memory_gib
        self._environment = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        self._child: Child | None = None
        self._stopped = False

    def start(self) -> Description:
        """Start the candidate. Raises CandidateStartError and UsageError."""
        self._child = Child(
            self._name, threads=self._threads, memory_gib=self._memory_gib, environment=self._environment
        )
        return self._child.describe()

    def run(self, task: Task) -> list[Outcome]:
        """Judge a task; a process that dies of it is answered by its outcomes, and starts again."""
        return judge_task(self._here(), task)

    def diagnose(self, *asked: Any) -> list[dict[str, Any]]:
        """As `Session.diagnose`."""
        return self._here().diagnose(*asked)

    def stop(self) -> None:
        """Kill the candidate's process, for whoever waits for its answer."""
        self._stopped = True
        if self._child is not None:
            self._child.kill()

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.close()

    def _here(self) -> Child:
        if self._child is None or self._stopped:
            raise WorkerLostError("the worker was ended")
        return self._child


def share_of_threads(workers: int) -> int:
    """Return the threads of torch for each of several workers: more than there are processors make all of them slower."""
    return max(1, len(os.sched_getaffinity(0)) // workers)

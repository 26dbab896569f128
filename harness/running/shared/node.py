"""What runs in a process of a Ray cluster: one candidate in its own child process, and the tasks that it judges.

Ray makes an actor of `Node`; nothing here imports it.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from harness.candidates.errors import CandidateStartError
from harness.running.outcome import Outcome
from harness.running.session import Child
from harness.running.shared.shards import short
from harness.running.shared.tasks import Task, judge_task
from harness.verdict import UsageError
from harness.version import __version__


class Node:
    """One candidate on one GPU, or on one processor, of a cluster.

    Args:
        name: of the candidate, as on a command line.
        threads: of torch, 0 for its own choice.
        memory_gib: limit of the candidate's process, 0 for none.
        folder: where the command was called, in which modules are looked for; left alone where this machine has none such.
    """

    def __init__(self, name: str, threads: int, memory_gib: float, folder: str) -> None:
        self._name, self._threads, self._memory_gib = name, threads, memory_gib
        with contextlib.suppress(OSError):
            os.chdir(folder)

    def start(self) -> dict[str, Any]:
        """Start the candidate; return the version here and its description as JSON has it, or why it did not start."""
        answer: dict[str, Any] = {"version": __version__}
        try:
            self._child = Child(self._name, threads=self._threads, memory_gib=self._memory_gib)
        except UsageError as error:
            return {**answer, "usage": str(error)}
        except CandidateStartError as error:
            return {**answer, "error": str(error)}
        return {**answer, "description": short(self._child.describe())}

    def run(self, task: Task) -> list[Outcome]:
        """Judge a task."""
        return judge_task(self._child, task)

    def diagnose(self, *asked: Any) -> list[dict[str, Any]]:
        """As `Session.diagnose`."""
        return self._child.diagnose(*asked)

"""Workers on a Ray cluster: an actor each, on a GPU where the candidate's device is cuda, else on a processor.

Ray says when a machine is lost; that the task is judged again, and counted once, is harness.running.shared.crew's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.candidates.errors import CandidateStartError
from harness.extras import require
from harness.records.from_json import build_from_json
from harness.running.outcome import Description, Outcome
from harness.running.shared.crew import WorkerLostError
from harness.running.shared.node import Node
from harness.running.shared.tasks import Task
from harness.verdict import UsageError
from harness.version import __version__

LOCAL = "local"  # Ray's own word for a cluster of this machine alone, which ends with the command
# Read when Ray is imported: nothing is sent to its makers. A cluster of this machine alone is reached from nowhere else, for
# which Ray has a switch that is named after the systems where it is the default.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
CONNECT_SECONDS = 10.0  # for an address to answer; Ray itself tries for minutes


class RayWorker:
    """One candidate on one GPU or processor of the cluster.

    Args:
        name: of the candidate.
        on_gpu: it needs a GPU.
        threads: of torch.
        memory_gib: limit of the candidate's process.
    """

    def __init__(self, name: str, *, on_gpu: bool, threads: int, memory_gib: float) -> None:
        self._given = (name, threads, memory_gib, str(Path.cwd()))
        self._needs = {"num_gpus": 1, "num_cpus": 0} if on_gpu else {"num_cpus": 1}
        self._actor: Any = None
        self._begun: Description | None = None

    def begin(self) -> Description:
        """Start the candidate before the first `start`, which then has nothing to do."""
        self._begun = self.start()
        return self._begun

    def start(self) -> Description:
        """Start the candidate wherever the cluster has room, and wait for that.

        Raises:
            CandidateStartError: it cannot run there, or another version of the harness is there.
            UsageError: there is no such candidate.
            WorkerLostError: the machine is gone.
        """
        import ray

        if self._begun is not None:
            begun, self._begun = self._begun, None
            return begun
        self._actor = ray.remote(Node).options(max_restarts=0, **self._needs).remote(*self._given)
        answer = self._asked("start")
        if answer["version"] != __version__:
            raise CandidateStartError(
                f"a node of the cluster has version {answer['version']} of the harness, this machine {__version__}: "
                "install the same one on all of them"
            )
        if "usage" in answer:
            raise UsageError(answer["usage"])
        if "error" in answer:
            raise CandidateStartError(answer["error"])
        described: Description = build_from_json(Description, answer["description"], "description")
        return described

    def run(self, task: Task) -> list[Outcome]:
        """Judge a task. Raises WorkerLostError."""
        found: list[Outcome] = self._asked("run", task)
        return found

    def diagnose(self, *asked: Any) -> list[dict[str, Any]]:
        """As `Session.diagnose`. Raises WorkerLostError."""
        found: list[dict[str, Any]] = self._asked("diagnose", *asked)
        return found

    def stop(self) -> None:
        """End its process; whoever waits for it gets WorkerLostError."""
        self.close()

    def close(self) -> None:
        """End its process."""
        import ray

        if self._actor is not None and ray.is_initialized():
            with contextlib.suppress(Exception):  # it may be gone, with its machine or with the cluster
                ray.kill(self._actor)

    def _asked(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except ray.exceptions.RayTaskError:
            raise  # it is there, and what it did went wrong
        except ray.exceptions.RayError as error:
            raise WorkerLostError(f"{type(error).__name__} of Ray: {_first_line(error)}") from None


def ray_workers(
    address: str, name: str, *, threads: int = 0, memory_gib: float = 0
) -> tuple[list[RayWorker], int]:
    """Return a worker for each GPU of a cluster, or for each processor, and how many machines there are.

    Args:
        address: as `ray.init` takes it: HOST:PORT, "auto", ray://HOST:PORT, or "local".
        name: of the candidate, as on a command line.
        threads: of torch; 0 for one, as a worker on a processor has no more.
        memory_gib: limit of each process's data segment, 0 for none.

    Raises:
        CandidateStartError: the candidate cannot run there.
        UsageError: no such candidate, or no such cluster.
        MissingExtraError: Ray is not installed.
    """
    require("--ray", "cluster")
    import ray

    _connect(address)
    there = ray.cluster_resources()
    gpus, processors = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    on_gpu = gpus > 0

    def worker() -> RayWorker:
        of_torch = threads or (0 if on_gpu else 1)
        return RayWorker(name, on_gpu=on_gpu, threads=of_torch, memory_gib=memory_gib)

    first = worker()
    try:
        if on_gpu and first.begin().declared.device != "cuda":
            first.close()
            on_gpu, first = False, worker()
    except WorkerLostError as error:
        raise CandidateStartError(f"the cluster lost the first worker: {error}") from error
    size = max(1, gpus if on_gpu else processors)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return [first, *(worker() for _ in range(size - 1))], nodes


def _connect(address: str) -> None:
    """Join a cluster, or start one of this machine. Raises UsageError where there is none."""
    os.environ.update(_QUIET if address != LOCAL else {**_QUIET, **_LOOPBACK})
    import ray

    if ray.is_initialized():
        return
    alone = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _answers(address)
        with _own_signals():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise UsageError(f"--ray {address}: {_first_line(error)}") from error


def _answers(address: str) -> None:
    """Try to reach HOST:PORT. Raises OSError where nobody answers, ValueError where the port is no number."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this process does on SIGTERM and SIGINT: Ray would put its own in the place of it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Batches of work over processes: each has loaded and measured the candidate once. Imports no torch."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.processes import ours_first

if TYPE_CHECKING:
    from harness.mutants.bench import Bench


@dataclass(frozen=True)
class BenchSettings:
    """What a bench is made of: see harness.mutants.bench.Bench."""

    candidate: str
    profile: str = "standard"
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One batch.

    Attributes:
        settings: of the bench that it needs; a process makes each bench once.
        work: "module:function" in harness.mutants; called with the bench and the arguments.
        arguments: JSON-ready keyword arguments.
        label: what it does, for the message where its process dies.
    """

    settings: BenchSettings
    work: str
    arguments: dict[str, Any] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class Died:
    """The answer to a job whose process died twice."""

    message: str


def run_jobs(jobs: list[Job], processes: int, *, in_child: bool) -> Iterator[tuple[Job, Any]]:
    """Run jobs and yield each with its answer, in the order in which they are ready.

    Args:
        jobs: what to do.
        processes: how many at once, each with one thread.
        in_child: False runs everything in this process, one after the other.

    Yields:
        (job, what its function returned, or `Died`). A job whose process dies is tried once more, alone.

    Raises:
        UsageError, CandidateStartError: the candidate does not exist or cannot run here.
    """
    if not in_child:
        for job in jobs:
            yield job, _work(job, threads=0)
        return
    if not jobs:
        return
    left = list(jobs)
    try:
        for job, answer in _together(jobs, min(processes, len(jobs))):
            left.remove(job)
            yield job, answer
    except BrokenProcessPool:
        for job in left:
            try:
                yield from _together([job], 1)
            except BrokenProcessPool:
                yield job, Died(f"the process died while it worked on {job.label}")


def _together(jobs: list[Job], processes: int) -> Iterator[tuple[Job, Any]]:
    # A forked child of a process with threads may hang, and CUDA refuses to run in one.
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"})  # read when a child loads torch
    pool = ProcessPoolExecutor(processes, context, initializer=_start)
    try:
        with ours_first():
            waiting: dict[Future[Any], Job] = {pool.submit(_work, job): job for job in jobs}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BaseException:  # an interrupt: the children would finish their batches first
        for process in list(pool._processes.values()):  # noqa: SLF001 - public as kill_workers() from Python 3.14 on
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start() -> None:
    """Leave an interrupt to the parent, which ends its children."""
    import signal

    from harness.extras import accept_no_numpy

    accept_no_numpy()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: Job, threads: int = 1) -> Any:
    module, _, name = job.work.partition(":")
    function = getattr(importlib.import_module(f"harness.mutants.{module}"), name)
    return function(_load(job.settings, threads), **job.arguments)


@functools.cache
def _load(settings: BenchSettings, threads: int) -> Bench:
    from harness.mutants.bench import Bench

    return Bench(settings.candidate, settings.profile, settings.seed, threads)

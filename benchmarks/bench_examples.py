"""Judged examples a second: 4 experts x capacity 160 x k 256 x n 256, all four stages, on all cores of this machine.

    python benchmarks/bench_examples.py

Once with one worker of one thread for each core, as `pytest suites -n CORES` runs them, and once with a single process.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time

SECONDS = 10


def judge(name: str, seed: int, threads: int) -> float:
    """Judge the pipeline on fresh problems; return examples a second."""
    from harness.faults.named import load_named
    from harness.problems.problem import Problem
    from harness.running.judge import Judge

    worker = Judge(load_named(name), threads=threads)
    draw = random.Random(seed)
    done, start = 0, 0.0
    while done < 20 or time.perf_counter() - start < SECONDS:
        if done == 19:
            start, done = time.perf_counter(), 20  # the first problems fill the cache of weights
        rows = tuple(draw.randint(0, 160) for _ in range(4))
        problem = Problem(4, 160, 256, 256, rows, "normal", draw.randrange(100_000))
        outcome = worker.judge("PIPELINE", str(problem))
        assert len(outcome.comparisons) == 6
        assert not bool(outcome.illegal)
        done += 1
    return (done - 20) / (time.perf_counter() - start)


def main() -> None:
    """Print both figures for both CPU candidates."""
    cores = len(os.sched_getaffinity(0))
    for name in ("eager", "physical"):
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            together = sum(pool.starmap(judge, [(name, worker, 1) for worker in range(cores)]))
        print(
            f"{name}: {together:.1f} examples a second with {cores} workers, {judge(name, 0, cores):.1f} with one process"
        )


if __name__ == "__main__":
    main()

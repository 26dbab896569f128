"""Judged examples a second: 4 experts x capacity 160 x k 256 x n 256, all four stages on the eager candidate.

    python benchmarks/bench_examples.py
"""

from __future__ import annotations

import random
import time

from harness.candidates import load_candidate
from harness.judging import Judge
from harness.problem import Problem


def main() -> None:
    """Judge the pipeline on fresh problems for ten seconds."""
    for name in ("eager", "physical"):
        judge = Judge(load_candidate(name))
        draw = random.Random(0)
        done = 0
        start = time.perf_counter()
        while time.perf_counter() - start < 10:
            rows = tuple(draw.randint(0, 160) for _ in range(4))
            outcome = judge.judge("PIPELINE", str(Problem(4, 160, 256, 256, rows, "normal", draw.randrange(100_000))))
            assert not any(c["illegal"] for c in outcome["comparisons"])
            done += 1
        seconds = time.perf_counter() - start
        print(f"{name}: {done / seconds:.1f} examples a second, each with {len(outcome['comparisons'])} comparisons of 4 stages")


if __name__ == "__main__":
    main()

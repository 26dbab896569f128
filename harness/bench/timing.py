"""Seconds of a call, by torch.utils.benchmark: warmed up, repeated, a GPU waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer


@dataclass(frozen=True)
class Timing:
    """How long one call takes.

    Attributes:
        seconds: median of all rounds.
        least, most: of the quickest and the slowest round.
    """

    seconds: float
    least: float
    most: float

    def __str__(self) -> str:
        """Return it in milliseconds: "0.152 ms (0.150 to 0.155)"."""
        digits = 3 if self.seconds < 0.01 else 1
        median, least, most = (f"{each * 1e3:,.{digits}f}" for each in (self.seconds, self.least, self.most))
        return f"{median} ms ({least} to {most})"


def timed(run: Callable[[], object], at_least: float = 0.2) -> Timing:
    """Return how long a call takes.

    Args:
        run: the call.
        at_least: seconds to spend on it; a call that takes longer runs three times.
    """
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    timer.timeit(1)  # compiles, allocates
    found = timer.adaptive_autorange(min_run_time=at_least, max_run_time=5 * at_least)
    times = sorted(found.times if len(found.times) > 2 else [timer.timeit(1).median for _ in range(3)])
    return Timing(times[len(times) // 2], times[0], times[-1])


def in_a_graph(run: Callable[[], object], calls: int = 10) -> Timing:
    """Return how long a call takes in a CUDA graph of some, where the host costs nothing."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    found = timed(graph.replay)
    return Timing(found.seconds / calls, found.least / calls, found.most / calls)

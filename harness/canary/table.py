"""The experiment that the canary exists for: every fault against its accuracy, beside the rule that kills it.

One command regenerates it (`harness canary table`); the record holds it as `canary_part.table`, the report draws it.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from harness.faults.bugs import threads_of
from harness.processes import ours_first
from harness.records.parts.canary import CanaryFacts, CanaryLine

VARIANTS = (
    ("bf16", 1, "experts", "bf16"),
    ("", 1, "experts", "bf16"),
    ("", 4, "experts", "bf16"),
    ("", 4, "experts", "fp8"),
    ("", 4, "experts", "nvfp4"),
    ("", 2, "width", "bf16"),
    ("", 2, "width", "fp8"),
    ("", 2, "width", "nvfp4"),
)
"""Right ways to run the layer: candidate ("" for the one under test), ranks, how they share it, what dispatch carries."""


def planned_lines(candidate: str, faults: list[str]) -> list[CanaryLine]:
    """Return every line of the table, not measured yet: the variants, then the faults (all of the catalog for an empty list).

    Raises:
        UsageError: an unknown fault.
    """
    from harness.faults.fault import all_faults, find_fault

    found = [find_fault(name) for name in faults] or list(all_faults().values())
    lines = [
        CanaryLine(
            _words(name or candidate, ranks, shard, transport),
            "variant",
            name or candidate,
            ranks,
            shard,
            transport,
        )
        for name, ranks, shard, transport in VARIANTS
    ]
    for fault in found:
        facts = CanaryFacts(
            fault.category,
            fault.title,
            fault.effect,
            fault.killed_by,
            list(fault.bugs),
            threads_of(fault.bugs),
        )
        # A fault of dispatch is in its transport; the others are shown on the plain one.
        fp8 = fault.category == "dispatch" and "fp8" in fault.name
        nvfp4 = fault.category == "dispatch" and "nvfp4" in fault.name
        transport = "fp8" if fp8 else "nvfp4" if nvfp4 else "bf16"
        ranks = 4 if fault.category in {"dispatch", "combine", "routing"} else 1
        lines.append(
            CanaryLine(fault.name, "fault", f"{candidate}+{fault.name}", ranks, "experts", transport, facts)
        )
    return lines


def _words(candidate: str, ranks: int, shard: str, transport: str) -> str:
    if ranks == 1:
        return candidate
    how = "whole experts" if shard == "experts" else "slices of every expert"
    return f"{candidate}, {ranks} ranks with {how}, {transport} dispatch"


def measured_line(line: CanaryLine, questions: int) -> CanaryLine:
    """Ask the questions of one line.

    Returns:
        The line with what was measured; or with `error` where the candidate cannot run it or raised, which is an answer
        too: real engines fail loudly on some faults.
    """
    from harness.canary import load_canary
    from harness.canary.run import run_questions
    from harness.verdict import UsageError

    started = time.monotonic()
    try:
        canary = load_canary(
            candidate=line.candidate, ranks=line.ranks, shard=line.shard, transport=line.transport
        )
        found = run_questions(canary, line.candidate, questions=questions)
    except UsageError as error:
        return replace(line, error=f"not planted: {error}")
    except Exception as error:  # noqa: BLE001 - a broken candidate may raise anything
        return replace(line, error=f"raised {type(error).__name__}: {error}")
    return replace(
        line,
        accuracy=found.accuracy_strict,
        interval=found.interval,
        asked=found.answered,
        verdict=found.verdict,
        qualifier=found.qualifier,
        seconds=time.monotonic() - started,
    )


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def run_table(
    candidate: str,
    *,
    questions: int,
    faults: list[str],
    jobs: int = 1,
    progress: Callable[[CanaryLine], None] = lambda _line: None,
) -> list[CanaryLine]:
    """Measure every line.

    Args:
        candidate: what the faults are planted in.
        questions: of the test set; a line whose first wave is dead ends there.
        faults: names, empty for all.
        jobs: processes, with one thread of torch each.
        progress: called with each line as it is done.

    Returns:
        The lines in order of `planned_lines`.
    """
    todo = planned_lines(candidate, faults)
    lines: dict[str, CanaryLine] = {}
    for line in _measured(todo, questions, jobs):
        lines[line.name] = line
        progress(line)
    return [lines[line.name] for line in todo]


def _measured(todo: list[CanaryLine], questions: int, jobs: int) -> Iterator[CanaryLine]:
    if jobs == 1:
        for line in todo:
            yield measured_line(line, questions)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _start, (1,)) as pool:
        with ours_first():
            running = [pool.submit(measured_line, line, questions) for line in todo]
        for done in concurrent.futures.as_completed(running):
            yield done.result()

"""Run one kernel under many schedules: the intact one must give the same bits in each, a broken one must be caught.

A mutation is caught where, under the latest or one of the drawn schedules, the output differs, the interpreter reports a
broken rule or a memory fault, or nobody can go on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.races.mutations import Mutation, mutations_of
from harness.races.problem import Kernel, RaceProblem, race_problem
from harness.records.parts.races import KernelHunt, MutationResult

if TYPE_CHECKING:
    from harness.interpreter.schedule import Schedule

Report = Callable[[str], None]


def hunt(
    kernel: Kernel, schedules: int, *, mutate: bool, only: str = "", report: Report = lambda _: None
) -> KernelHunt:
    """Hunt races in one compiled kernel.

    Args:
        kernel: which.
        schedules: drawn schedules, seeds 1 to this.
        mutate: plant every mutation as well.
        only: run only mutations whose name starts with this.
        report: gets a line for each step.
    """
    from harness.interpreter.host import device

    start = time.monotonic()
    seen: list[str] = []
    differing: dict[str, str] = {}
    caught: list[MutationResult] = []

    def look(ptx: str) -> str:
        seen.append(ptx)
        return ptx

    device().rewrite = look
    try:
        wanted = race_problem().run(kernel.options)
        elements, wrong, written = _against_the_exact(wanted)
        device().rewrite = None
        for seed in range(1, schedules + 1):
            how, detail = _outcome(race_problem(), kernel, _seeded(seed), wanted)
            if how:
                differing[str(seed)] = f"{how}: {detail}"
                report(f"{kernel.name}: seed {seed}: {how}: {detail}")
        report(f"{kernel.name}: {schedules} schedules of the intact kernel, {len(differing)} differ")
        if mutate:
            for mutation in _chosen(seen[-1], only):
                caught.append(_plant(mutation, kernel, schedules, wanted))
                report(describe(caught[-1]))
    finally:
        device().rewrite = None
    seconds = time.monotonic() - start
    return KernelHunt(kernel.name, schedules, differing, elements, wrong, written, seconds, caught)


def describe(caught: MutationResult) -> str:
    """Return one mutation's row."""
    if caught.how:
        return f"  {caught.name:24} {caught.how:13} schedule {caught.schedule:5} {caught.detail[:90]}"
    word = "no effect" if caught.benign else "SURVIVED"
    return f"  {caught.name:24} {word:13} of {caught.schedules} schedules: {caught.benign or caught.says}"


def _chosen(ptx: str, only: str) -> Iterator[Mutation]:
    yield from (m for m in mutations_of(ptx) if m.name.startswith(only))


def _against_the_exact(out: Tensor) -> tuple[int, int, list[int]]:
    """Compare the intact kernel's output with the exact result.

    Returns:
        Elements compared, those outside float32 accumulation, and the rows of each expert that were written.
    """
    from harness.candidates.layouts import codes_of
    from harness.races.problem import SENTINEL
    from reference.nvfp4 import decode_blocks

    problem = race_problem()
    a, b = (
        decode_blocks(codes_of(packed), scale, torch.float64)
        for packed, scale in ((problem.a, problem.a_block_scale), (problem.b, problem.b_block_scale))
    )
    exact = (a @ b.transpose(1, 2)) * problem.alpha.double()[:, None, None]
    largest = float(exact.abs().max())
    elements = wrong = 0
    for expert, count in enumerate(problem.masked_m.tolist()):
        error = (out[expert, :count].double() - exact[expert, :count]).abs()
        wrong += int((~(error <= 3e-7 * largest)).sum())
        elements += error.numel()
    return elements, wrong, [int((out[e] != SENTINEL).any(-1).sum()) for e in range(out.shape[0])]


def _plant(mutation: Mutation, kernel: Kernel, schedules: int, wanted: Tensor) -> MutationResult:
    from harness.interpreter.host import device

    problem = race_problem()
    if mutation.arguments:
        mutation.arguments(problem)
    device().rewrite = mutation.ptx
    try:
        for number in range(schedules + 1):
            schedule = _seeded(number) if number else None
            how, detail = _outcome(copy.copy(problem), kernel, schedule, wanted)
            if how:
                name = str(number) if number else "late"
                return MutationResult(
                    mutation.name, mutation.says, how, name, number + 1, detail, mutation.benign
                )
    finally:
        device().rewrite = None
    return MutationResult(mutation.name, mutation.says, "", "", schedules + 1, "", mutation.benign)


def _outcome(
    problem: RaceProblem, kernel: Kernel, schedule: Callable[[], Schedule] | None, wanted: Tensor
) -> tuple[str, str]:
    """Return how a run differs from the wanted output, and the detail; ("", "") where it does not."""
    from harness.interpreter import errors

    kinds = {
        errors.DeadlockError: "deadlock",
        errors.ProtocolError: "protocol",
        errors.MemoryFaultError: "memory fault",
        errors.InterpreterError: "refused",
    }
    try:
        out = problem.run(kernel.options, schedule)
    except errors.InterpreterError as error:
        how = next(name for kind, name in kinds.items() if isinstance(error, kind))
        return how, " ".join(str(error).split())
    same = out.view(torch.int32) == wanted.view(torch.int32)
    if bool(same.all()):
        return "", ""
    different = int((~same).sum())
    return "wrong values", f"{different} of {out.numel()} elements differ"


def _seeded(seed: int) -> Callable[[], Schedule]:
    from harness.interpreter.schedule import seeded

    return lambda: seeded(seed)

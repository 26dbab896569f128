"""Run one kernel under many schedules: the intact one must give the same bits in each, a broken one must be caught.

A mutation is caught where, under the latest or one of the drawn schedules, the output differs, the interpreter reports a
broken rule or a memory fault, or nobody can go on.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.races.mutations import Mutation, mutations_of
from harness.races.problem import Kernel, RaceProblem, race_problem

if TYPE_CHECKING:
    from harness.interpreter.schedule import Schedule

Report = Callable[[str], None]


@dataclass
class Caught:
    """What became of one mutation.

    Attributes:
        name: of the mutation.
        says: what is wrong in it.
        how: what showed it: "wrong values", "deadlock", "protocol", "memory fault", "refused", or "" for nothing.
        schedule: under which: "late" or the seed.
        schedules: schedules that it was run under.
        detail: the message or the count.
        benign: why it need not be caught, "" where it must be.
    """

    name: str
    says: str
    how: str
    schedule: str
    schedules: int
    detail: str
    benign: str

    @property
    def survived(self) -> bool:
        """Whether nothing showed a mistake that must be seen."""
        return not self.how and not self.benign


@dataclass
class HuntResult:
    """What a hunt over one kernel found.

    Attributes:
        kernel: its name.
        schedules: seeds under which the intact kernel ran.
        differing: seeds whose bits differ from the latest schedule, with what happened.
        elements: outputs compared per schedule.
        wrong: elements of the latest schedule outside float32 accumulation of the exact result.
        written: rows written of each expert.
        seconds: in all.
        caught: the mutations.
    """

    kernel: str
    schedules: int = 0
    differing: dict[str, str] = field(default_factory=dict)
    elements: int = 0
    wrong: int = 0
    written: list[int] = field(default_factory=list)
    seconds: float = 0.0
    caught: list[Caught] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the intact kernel is right in every schedule and every mutation that must be seen was caught."""
        return not self.differing and not self.wrong and not any(c.survived for c in self.caught)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)


def hunt(
    kernel: Kernel, schedules: int, *, mutate: bool, only: str = "", report: Report = lambda _: None
) -> HuntResult:
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
    result = HuntResult(kernel.name, schedules)
    seen: list[str] = []

    def look(ptx: str) -> str:
        seen.append(ptx)
        return ptx

    device().rewrite = look
    try:
        wanted = race_problem().run(kernel.options)
        _judge(result, wanted)
        device().rewrite = None
        for seed in range(1, schedules + 1):
            how, detail = _outcome(race_problem(), kernel, _seeded(seed), wanted)
            if how:
                result.differing[str(seed)] = f"{how}: {detail}"
                report(f"{kernel.name}: seed {seed}: {how}: {detail}")
        report(f"{kernel.name}: {schedules} schedules of the intact kernel, {len(result.differing)} differ")
        if mutate:
            for mutation in _chosen(seen[-1], only):
                result.caught.append(_plant(mutation, kernel, schedules, wanted))
                report(describe(result.caught[-1]))
    finally:
        device().rewrite = None
    result.seconds = time.monotonic() - start
    return result


def describe(caught: Caught) -> str:
    """Return one mutation's row."""
    if caught.how:
        return f"  {caught.name:24} {caught.how:13} schedule {caught.schedule:5} {caught.detail[:90]}"
    word = "no effect" if caught.benign else "SURVIVED"
    return f"  {caught.name:24} {word:13} of {caught.schedules} schedules: {caught.benign or caught.says}"


def _chosen(ptx: str, only: str) -> Iterator[Mutation]:
    yield from (m for m in mutations_of(ptx) if m.name.startswith(only))


def _judge(result: HuntResult, out: Tensor) -> None:
    """Compare the intact kernel's output with the exact result, and count the rows that it wrote."""
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
    result.written = [int((out[e] != SENTINEL).any(-1).sum()) for e in range(out.shape[0])]
    for expert, count in enumerate(problem.masked_m.tolist()):
        error = (out[expert, :count].double() - exact[expert, :count]).abs()
        result.wrong += int((~(error <= 3e-7 * largest)).sum())
        result.elements += error.numel()


def _plant(mutation: Mutation, kernel: Kernel, schedules: int, wanted: Tensor) -> Caught:
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
                return Caught(mutation.name, mutation.says, how, name, number + 1, detail, mutation.benign)
    finally:
        device().rewrite = None
    return Caught(mutation.name, mutation.says, "", "", schedules + 1, "", mutation.benign)


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

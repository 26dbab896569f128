"""Runs launches: makes the warps of each cluster, and gives them and the asynchronous units their turns."""

from __future__ import annotations

import numpy as np

from harness.interpreter.cluster import Cluster, Launch
from harness.interpreter.errors import DeadlockError, InterpreterError, ProtocolError
from harness.interpreter.lanes import LANES
from harness.interpreter.program import Program
from harness.interpreter.schedule import Schedule
from harness.interpreter.warp import BLOCKED, Turns, Warp

_PATIENCE = 2  # how often in a row every try_wait gives up without effect before that is a deadlock


def run_launch(program: Program, launch: Launch, schedule: Schedule) -> None:
    """Run every cluster of a launch, one after the other: CTAs of different clusters share nothing but global memory.

    Raises:
        InterpreterError: the kernel did something that is not modelled, or wrong.
    """
    steps = [range(0, extent, size) for extent, size in zip(launch.grid, launch.cluster, strict=True)]
    for extent, size, axis in zip(launch.grid, launch.cluster, "xyz", strict=True):
        if extent % size:
            raise ProtocolError(f"grid {axis} of {extent} is no multiple of the cluster's {size}")
    block = np.frombuffer(launch.parameters, dtype=np.uint8).copy()
    launch.parameter_address = launch.memory.add_array(block, "kernel parameters", writable=False)
    corners = [(x, y, z) for z in steps[2] for y in steps[1] for x in steps[0]]
    with np.errstate(all="ignore"):
        for number in schedule.order(len(corners)):
            ClusterRun(program, Cluster(launch, corners[number], schedule)).run()


class ClusterRun:
    """The warps of one cluster, run to their end.

    Args:
        program: what they run.
        cluster: whose warps they are.
    """

    def __init__(self, program: Program, cluster: Cluster) -> None:
        self.program = program
        self.cluster = cluster
        self.turns = Turns()
        self.warps = [
            Warp(cta, number, program.register_count, program.where, self.turns)
            for cta in cluster.ctas
            for number in range(-(-cta.threads // LANES))
        ]
        self.turns.ready.extend(self.warps)
        self._idle = 0
        self._seen = -1

    def run(self) -> None:
        """Run until every warp has ended and every operation is done.

        Raises:
            DeadlockError: nobody can go on.
            ProtocolError: tensor memory is still allocated at the end.
        """
        cluster, ready = self.cluster, self.turns.ready
        schedule = cluster.schedule
        while True:
            operations = cluster.eligible()
            if ready or operations:
                names = (
                    [operation.name for operation in operations]
                    if schedule.drawn
                    else ("",) * len(operations)
                )
                who, number = schedule.turn(len(ready), names)
                if who == "unit":
                    cluster.perform(operations[number])
                else:
                    ready.rotate(-number)
                    self._run_warp(ready.popleft())
                continue
            if all(warp.ended for warp in self.warps):
                break
            self._time_out()
        for cta in cluster.ctas:
            if leaked := cta.tensor.leaked():
                raise ProtocolError(f"CTA {cta.rank} ends with tensor memory still allocated: {leaked}")

    def _run_warp(self, warp: Warp) -> None:
        run_blocks(self.program, warp, self.cluster.schedule.blocks())
        if warp.runnable:
            self.turns.ready.append(warp)

    def _time_out(self) -> None:
        """Nobody can go on: let the try_waits that may give up return false, again and again without effect is a deadlock."""
        timed = [warp for warp in self.turns.timed if warp.waits_with_limit]
        self.turns.timed.clear()
        self._idle = self._idle + 1 if self._seen == self.cluster.progress else 0
        self._seen = self.cluster.progress
        if not timed or self._idle > _PATIENCE:
            raise DeadlockError(self._report())
        for warp in timed:
            warp.give_up()

    def _report(self) -> str:
        """Return who waits for what."""
        lines = ["no warp can go on and no asynchronous operation is pending:"]
        lines += [
            f"  CTA {warp.cta.index} rank {warp.cta.rank}, {warp.describe()}"
            for warp in self.warps
            if not warp.ended
        ]
        return "\n".join(lines)


def run_blocks(program: Program, warp: Warp, budget: int) -> None:
    """Run basic blocks until the warp waits, ends, or has used its budget.

    Raises:
        InterpreterError: the kernel did something that is not modelled, or wrong; a note says where.
    """
    registers = warp.registers
    while budget > 0:
        budget -= 1
        at = warp.pc
        try:
            if warp.mask is None:
                following = program.block(at)(warp, registers, None)
            else:
                following = program.partial_block(at, warp.others)(warp, registers, warp.mask)
        except InterpreterError as error:
            error.add_note(f"in CTA {warp.cta.index}, {warp.describe()}")
            raise
        except TypeError as error:
            undefined = program.undefined(at, registers)
            if not undefined:
                raise
            raise ProtocolError(
                f"register {', '.join(undefined)} is read before it is written ({warp.describe()})"
            ) from error
        if following >= 0:
            warp.pc = following
        if warp.others and not warp.ended and following != BLOCKED:
            warp.settle()
        if not warp.runnable:
            return

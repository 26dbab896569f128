"""One cluster of CTAs: their memories, warps, barriers and pending asynchronous operations, and the loop that runs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.interpreter.errors import DeadlockError, ProtocolError
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.memory import RANK_SHIFT, SHARED_BASE, GlobalMemory, SharedMemory
from harness.interpreter.program import Program
from harness.interpreter.schedule import Schedule
from harness.interpreter.tensor_core import CtaUnits
from harness.interpreter.tensor_memory import TensorMemory
from harness.interpreter.warp import Warp
from harness.interpreter.warp_state import WarpState

_OFFSET = (1 << RANK_SHIFT) - 1


@dataclass
class Launch:
    """What a kernel is launched with.

    Attributes:
        program: the compiled kernel.
        memory: global memory that it may touch.
        grid: blocks in x, y, z.
        block: threads in x, y, z.
        cluster: blocks of a cluster in x, y, z.
        shared_bytes: dynamic shared memory.
        parameters: the parameter block.
    """

    program: Program
    memory: GlobalMemory
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes
    parameter_address: int = 0


@dataclass
class Operation:
    """One pending asynchronous operation.

    Attributes:
        run: does it.
        unit: operations of one unit run in their order; None: in any order.
        name: for the deadlock report and tests.
    """

    run: Callable[[], None]
    unit: Any
    name: str


@dataclass
class NamedBarrier:
    """bar.sync with one number: threads that have come, how many are wanted, warps that wait."""

    come: int = 0
    wanted: int = 0
    waiting: list[WarpState] = field(default_factory=list)


class Cta(CtaUnits):
    """One thread block."""

    def __init__(self, cluster: Cluster, rank: int, index: tuple[int, int, int]) -> None:
        super().__init__(SharedMemory(cluster.launch.shared_bytes), TensorMemory())
        self.cluster = cluster
        self.rank = rank
        self.index = index
        self.address = rank << RANK_SHIFT | SHARED_BASE
        self.mbarriers: dict[int, MBarrier] = {}
        self.named: dict[int, NamedBarrier] = {}
        threads = cluster.launch.block[0] * cluster.launch.block[1] * cluster.launch.block[2]
        self.threads = threads
        self.warps = [
            Warp(self, number, min(threads - 32 * number, 32)) for number in range(-(-threads // 32))
        ]

    def barrier(self, number: int, threads: int, warp: WarpState, *, waits: bool) -> bool:
        """Arrive at bar.sync or bar.arrive; return whether the warp may go on."""
        if warp.mask is not None:
            raise ProtocolError(f"bar.sync {number} by a part of a warp is not modelled ({warp.describe()})")
        named = self.named.setdefault(number, NamedBarrier())
        if named.come and named.wanted != threads:
            raise ProtocolError(
                f"bar.sync {number}: {threads} threads are expected, earlier warps said {named.wanted}"
            )
        named.wanted = threads
        named.come += 32
        if named.come > threads:
            raise ProtocolError(f"bar.sync {number}: more than {threads} threads have come")
        if named.come < threads:
            if waits:
                named.waiting.append(warp)
            return not waits
        waiting, self.named[number] = named.waiting, NamedBarrier()
        for other in waiting:
            other.wake()
        return True


class Cluster:
    """The CTAs of one cluster, run to their end.

    Args:
        launch: the launch.
        corner: index of its first CTA in the grid.
        schedule: who takes turns.
    """

    def __init__(self, launch: Launch, corner: tuple[int, int, int], schedule: Schedule) -> None:
        self.launch = launch
        self.memory = launch.memory
        self.schedule = schedule
        self.operations: list[Operation] = []
        self.ready: deque[WarpState] = deque()
        self.progress = 0  # counts everything that can end somebody's wait
        width, height, depth = launch.cluster
        self.ctas: list[Cta] = []
        for rank in range(width * height * depth):
            x, y, z = rank % width, rank // width % height, rank // (width * height)
            self.ctas.append(Cta(self, rank, (corner[0] + x, corner[1] + y, corner[2] + z)))
        self._gathered = 0
        self._cluster_waiting: list[WarpState] = []
        self._cluster_phase = 0
        for cta in self.ctas:
            self.ready.extend(cta.warps)
        self._timed: list[WarpState] = []
        self._idle = 0

    def mbarrier(self, address: int) -> MBarrier:
        """Return the mbarrier at a shared address, of whichever CTA's rank is in it."""
        rank, offset = address >> RANK_SHIFT, address & _OFFSET
        if rank >= len(self.ctas):
            raise ProtocolError(f"mbarrier at {address:#x}: the cluster has no CTA {rank}")
        found = self.ctas[rank].mbarriers.get(offset)
        if found is None:
            raise ProtocolError(f"mbarrier at {address:#x} is used before mbarrier.init")
        return found

    def post(self, run: Callable[[], None], unit: Any, name: str) -> None:
        """Hand an operation to an asynchronous unit."""
        self.operations.append(Operation(run, unit, name))

    def gather(self, threads: int) -> int:
        """Count arrivals at the cluster barrier; return the phase that the arriving warp must see end."""
        phase = self._cluster_phase
        self._gathered += threads
        if self._gathered == sum(cta.threads for cta in self.ctas):
            self._gathered = 0
            self._cluster_phase += 1
            waiting, self._cluster_waiting = self._cluster_waiting, []
            for warp in waiting:
                warp.wake()
        return phase

    def gathered(self, phase: int, warp: WarpState) -> bool:
        """Return whether the cluster barrier's phase has ended; if not, the warp is woken when it does."""
        if self._cluster_phase > phase:
            return True
        self._cluster_waiting.append(warp)
        return False

    def sleep(self, warp: WarpState) -> None:
        """Remember a warp whose try_wait may return false after a while."""
        self._timed.append(warp)

    def run(self) -> None:
        """Run until every warp has ended and every operation is done.

        Raises:
            DeadlockError: nobody can go on.
            ProtocolError: tensor memory is still allocated at the end.
        """
        while True:
            operations = self._eligible()
            if self.ready or operations:
                names = (
                    [operation.name for operation in operations]
                    if self.schedule.drawn
                    else ("",) * len(operations)
                )
                who, number = self.schedule.turn(len(self.ready), names)
                if who == "unit":
                    self._perform(operations[number])
                else:
                    self.ready.rotate(-number)
                    self._run_warp(self.ready.popleft())
                continue
            if all(warp.ended for cta in self.ctas for warp in cta.warps):
                break
            self._time_out()
        for cta in self.ctas:
            if leaked := cta.tensor.leaked():
                raise ProtocolError(f"CTA {cta.rank} ends with tensor memory still allocated: {leaked}")

    def _run_warp(self, warp: WarpState) -> None:
        warp.run(self.schedule.blocks())
        if warp.runnable:
            self.ready.append(warp)

    def _perform(self, operation: Operation) -> None:
        self.operations.remove(operation)
        self.progress += 1
        operation.run()

    def _eligible(self) -> list[Operation]:
        if not self.schedule.drawn:
            return self.operations
        units = set()
        found = []
        for operation in self.operations:
            if operation.unit is None or operation.unit not in units:
                found.append(operation)
                units.add(operation.unit)
        return found

    def _time_out(self) -> None:
        """Nobody can go on: let the try_waits that may give up return false, twice without effect is a deadlock."""
        timed, self._timed = self._timed, []
        timed = [warp for warp in timed if warp.waits_with_limit]
        self._idle = self._idle + 1 if getattr(self, "_seen", -1) == self.progress else 0
        self._seen = self.progress
        if not timed or self._idle > 2:
            raise DeadlockError(self.report())
        for warp in timed:
            warp.give_up()

    def report(self) -> str:
        """Return who waits for what."""
        lines = ["no warp can go on and no asynchronous operation is pending:"]
        lines += [
            f"  CTA {cta.index} rank {cta.rank}, {warp.describe()}"
            for cta in self.ctas
            for warp in cta.warps
            if not warp.ended
        ]
        return "\n".join(lines)


def run_launch(launch: Launch, schedule: Schedule) -> None:
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
            Cluster(launch, corners[number], schedule).run()

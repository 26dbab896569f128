"""One cluster of CTAs: their memories, barriers and pending asynchronous operations. Of a warp it knows how to wake it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from harness.interpreter.errors import ProtocolError
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.memory import RANK_SHIFT, SHARED_BASE, SHARED_OFFSET, GlobalMemory, SharedMemory
from harness.interpreter.schedule import Schedule
from harness.interpreter.tensor_core import CtaUnits
from harness.interpreter.tensor_memory import TensorMemory

Wake = Callable[[], None]


@dataclass
class Launch:
    """What a kernel is launched with.

    Attributes:
        memory: global memory that it may touch.
        grid: blocks in x, y, z.
        block: threads in x, y, z.
        cluster: blocks of a cluster in x, y, z.
        shared_bytes: dynamic shared memory.
        parameters: the parameter block.
        parameter_address: where the parameter block lies in global memory.
    """

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
    waiting: list[Wake] = field(default_factory=list)


class Cta(CtaUnits):
    """One thread block."""

    def __init__(self, cluster: Cluster, rank: int, index: tuple[int, int, int]) -> None:
        launch = cluster.launch
        super().__init__(SharedMemory(launch.shared_bytes), TensorMemory())
        self.cluster = cluster
        self.rank = rank
        self.index = index
        self.address = rank << RANK_SHIFT | SHARED_BASE
        self.mbarriers: dict[int, MBarrier] = {}
        self.named: dict[int, NamedBarrier] = {}
        self.threads = launch.block[0] * launch.block[1] * launch.block[2]

    def barrier(self, number: int, threads: int, wake: Wake | None) -> bool:
        """Let a warp arrive at bar.sync or bar.arrive; return whether it may go on.

        Args:
            number: of the barrier.
            threads: how many it is for.
            wake: called when all have come, if the warp must wait; None: it does not wait.
        """
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
            if wake is not None:
                named.waiting.append(wake)
            return wake is None
        waiting, self.named[number] = named.waiting, NamedBarrier()
        for other in waiting:
            other()
        return True


class Cluster:
    """The state that the CTAs of one cluster share.

    Args:
        launch: the launch.
        corner: index of its first CTA in the grid.
        schedule: who takes turns.

    Attributes:
        ctas: by rank.
        operations: pending, oldest first.
        progress: counts everything that can end somebody's wait.
    """

    def __init__(self, launch: Launch, corner: tuple[int, int, int], schedule: Schedule) -> None:
        self.launch = launch
        self.memory = launch.memory
        self.schedule = schedule
        self.operations: list[Operation] = []
        self.progress = 0
        width, height, depth = launch.cluster
        self.ctas: list[Cta] = []
        for rank in range(width * height * depth):
            x, y, z = rank % width, rank // width % height, rank // (width * height)
            self.ctas.append(Cta(self, rank, (corner[0] + x, corner[1] + y, corner[2] + z)))
        self._gathered = 0
        self._waiting: list[Wake] = []
        self._phase = 0

    def mbarrier(self, address: int) -> MBarrier:
        """Return the mbarrier at a shared address, of whichever CTA's rank is in it."""
        rank, offset = address >> RANK_SHIFT, address & SHARED_OFFSET
        if rank >= len(self.ctas):
            raise ProtocolError(f"mbarrier at {address:#x}: the cluster has no CTA {rank}")
        found = self.ctas[rank].mbarriers.get(offset)
        if found is None:
            raise ProtocolError(f"mbarrier at {address:#x} is used before mbarrier.init")
        return found

    def gather(self, threads: int) -> int:
        """Count arrivals at the cluster barrier; return the phase that the arriving warp must see end."""
        phase = self._phase
        self._gathered += threads
        if self._gathered == sum(cta.threads for cta in self.ctas):
            self._gathered = 0
            self._phase += 1
            waiting, self._waiting = self._waiting, []
            for wake in waiting:
                wake()
        return phase

    def gathered(self, phase: int, wake: Wake) -> bool:
        """Return whether the cluster barrier's phase has ended; if not, `wake` is called when it does."""
        if self._phase > phase:
            return True
        self._waiting.append(wake)
        return False

    def post(self, run: Callable[[], None], unit: Any, name: str) -> None:
        """Hand an operation to an asynchronous unit."""
        self.operations.append(Operation(run, unit, name))

    def eligible(self) -> list[Operation]:
        """Return the pending operations that could be done now: of a unit that works in order only the oldest."""
        if not self.schedule.drawn:
            return self.operations
        units = set()
        found = []
        for operation in self.operations:
            if operation.unit is None or operation.unit not in units:
                found.append(operation)
                units.add(operation.unit)
        return found

    def perform(self, operation: Operation) -> None:
        """Do a pending operation."""
        self.operations.remove(operation)
        self.progress += 1
        operation.run()

"""One warp: registers, the lanes that are active, and what it waits for. The instructions themselves are generated code.

Divergence: lanes that went different ways are fragments; the one with the lowest program counter runs, and fragments that
meet join. If it has to wait, the whole warp waits, as code compiled with `.sync` instructions expects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.interpreter.cluster import Cta
from harness.interpreter.errors import ProtocolError, UnsupportedPtxError
from harness.interpreter.lanes import FIRST_LANE, LANE_ID, LANES, Array, Lanes, uniform
from harness.interpreter.mbarrier import MBarrier

BLOCKED = -1


@dataclass
class Turns:
    """The warps of one cluster that can go on, in the order of their turns, and those whose try_wait may give up."""

    ready: deque[Warp] = field(default_factory=deque)
    timed: list[Warp] = field(default_factory=list)


@dataclass(eq=False)  # a group is itself, whatever it counts
class BulkGroup:
    """One bulk async-group: stores whose shared memory is not read yet, stores not yet written."""

    reads: int = 0
    writes: int = 0


class Warp:
    """32 lanes that run one program.

    Args:
        cta: the thread block that it belongs to.
        number: its number in the block; the last one may have fewer lanes.
        registers: how many the program has.
        where: says in words where a basic block stands in the program.
        turns: where it takes its place when it is woken.

    Attributes:
        pc: index of the basic block to run next.
        mask: active lanes, None for all.
        count: how many are active.
        others: block and lanes of the fragments that wait for this one.
        result: what the wait that just ended says (the predicate of try_wait).
        waits_for: in words, with the mbarrier or whatever it is.
        bulk, open: committed bulk groups, and the one that takes the next stores.
        unpublished: offsets and size of stores to shared memory that the asynchronous units do not see yet.
    """

    def __init__(
        self, cta: Cta, number: int, registers: int, where: Callable[[int], str], turns: Turns
    ) -> None:
        launch = cta.cluster.launch
        self.cta = cta
        self.cluster = cta.cluster
        self.number = number
        self.memory = launch.memory
        self.parameters = launch.parameters
        self.parameter_address = launch.parameter_address
        self.registers: list[Lanes] = [None] * registers
        self.pc = 0
        self.mask: Array | None = None
        self.count = LANES
        self.others: list[tuple[int, Array]] = []
        self.ended = False
        self.runnable = True
        self.result: Lanes = True
        self.waits_with_limit = False
        self.waits_for: tuple[str, Any] = ("", None)
        self.bulk: list[BulkGroup] = []
        self.open = BulkGroup()
        self.unpublished: list[tuple[Array, int]] = []
        self.cluster_phase = 0
        self._where = where
        self._turns = turns
        self._special = _special_registers(cta, number)
        threads = cta.threads - LANES * number
        if threads < LANES:
            self.become(threads > LANE_ID)

    def wait(self, for_what: str, subject: Any, following: int) -> int:
        """Stop until `wake`; the warp goes on at the block `following`."""
        self.pc = following
        self.runnable = False
        self.waits_for = (for_what, subject)
        return BLOCKED

    def wait_with_limit(self, for_what: str, barrier: MBarrier, following: int) -> int:
        """Stop until the mbarrier's phase completes, or until `give_up`."""
        barrier.waiters.append(self.wake)
        self._turns.timed.append(self)
        self.waits_with_limit = True
        return self.wait(for_what, barrier, following)

    def wake(self, result: bool = True) -> None:
        """End a wait."""
        if self.runnable or self.ended:
            return
        self.runnable = True
        self.waits_with_limit = False
        self.result = result
        if self.others:
            self.settle()
        self.cluster.progress += 1
        self._turns.ready.append(self)

    def give_up(self) -> None:
        """End a try_wait with false."""
        progress = self.cluster.progress
        _, barrier = self.waits_for
        barrier.waiters = [wake for wake in barrier.waiters if wake != self.wake]
        self.wake(result=False)
        self.cluster.progress = progress  # nothing happened but time

    def become(self, mask: Array) -> None:
        """Let exactly these lanes be active."""
        self.count = int(mask.sum())
        self.mask = None if self.count == LANES else mask

    def settle(self) -> None:
        """Run the lowest program counter; join fragments that stand at the same one."""
        mask = self.mask if self.mask is not None else np.ones(LANES, dtype=bool)
        found: dict[int, Array] = {self.pc: mask}
        for pc, other in self.others:
            found[pc] = found[pc] | other if pc in found else other
        self.pc = min(found)
        self.become(found.pop(self.pc))
        self.others = list(found.items())

    def diverge(self, predicate: Lanes, taken: int, following: int) -> int:
        """Send the active lanes where the predicate holds to `taken`, the others to `following`."""
        active = self.mask if self.mask is not None else np.ones(LANES, dtype=bool)
        jumps = active & predicate
        if not jumps.any():
            return following
        stays = active & ~predicate
        if not stays.any():
            return taken
        if taken == following:
            return taken
        first, second = (
            ((taken, jumps), (following, stays))
            if taken < following
            else ((following, stays), (taken, jumps))
        )
        self.others.append(second)
        self.become(first[1])
        return first[0]

    def leave(self) -> int:
        """End the active lanes (ret, exit)."""
        if self.others:
            self.others.sort(key=lambda other: other[0])
            self.pc, mask = self.others.pop(0)
            self.become(mask)
            return self.pc
        if self.open.reads or self.open.writes:
            raise ProtocolError(f"{self.describe()} ends with bulk copies that no commit_group covers")
        self.ended, self.runnable = True, False
        return BLOCKED

    def whole(self, op: str, members: Lanes) -> None:
        """Check that exactly the lanes that a `.sync` instruction names are there.

        Raises:
            ProtocolError: they are not.
        """
        wanted = self.one(members, "member mask")
        active = (
            0xFFFF_FFFF if self.mask is None else sum(1 << int(lane) for lane in np.flatnonzero(self.mask))
        )
        if wanted != active:
            raise ProtocolError(f"{op} names the lanes {wanted:#010x}, active are {active:#010x}")

    def elect(self) -> tuple[int, Lanes]:
        """Return elect.sync: the number of the first active lane, and the predicate that is true there."""
        if self.mask is None:
            return 0, FIRST_LANE
        first = int(np.argmax(self.mask))
        return first, first == LANE_ID

    def trap(self) -> None:
        """Run trap.

        Raises:
            ProtocolError: always.
        """
        raise ProtocolError(f"trap at {self._where(self.pc)}")

    def describe(self) -> str:
        """Return where the warp stands and what it waits for."""
        for_what, subject = self.waits_for
        at = self._where(self.pc)
        state = "ended" if self.ended else f"at {at}"
        if not self.runnable and not self.ended:
            detail = f" ({subject.describe()})" if isinstance(subject, MBarrier) else ""
            state = f"waits for {for_what}{detail} before {at}"
        lanes = "" if self.count == LANES else f", {self.count} lanes active"
        return f"warp {self.number} {state}{lanes}"

    def special(self, name: str) -> Lanes:
        """Return a special register such as %tid.x."""
        if name not in self._special:
            raise UnsupportedPtxError(f"special register {name} is not modelled")
        return self._special[name]

    def one(self, value: Lanes, what: str) -> int:
        """Return a value that must be the same in all active lanes."""
        return value if isinstance(value, int) else uniform(value, self.mask, what)


def _special_registers(cta: Cta, number: int) -> dict[str, Lanes]:
    """Return the values of the special registers of a warp (PTX ISA 10)."""
    launch = cta.cluster.launch
    block, grid, cluster = launch.block, launch.grid, launch.cluster
    thread = LANE_ID + np.uint32(LANES * number)
    found: dict[str, Lanes] = {
        "%laneid": LANE_ID,
        "%tid.x": thread % np.uint32(block[0]) if block[1] * block[2] > 1 else thread,
        "%tid.y": thread // np.uint32(block[0]) % np.uint32(block[1]) if block[1] > 1 else 0,
        "%tid.z": thread // np.uint32(block[0] * block[1]) if block[2] > 1 else 0,
        "%cluster_ctarank": cta.rank,
        "%cluster_nctarank": cluster[0] * cluster[1] * cluster[2],
        "%warpid": number,
    }
    for axis, letter in enumerate("xyz"):
        within = (
            cta.rank % cluster[0],
            cta.rank // cluster[0] % cluster[1],
            cta.rank // (cluster[0] * cluster[1]),
        )
        found |= {
            f"%ntid.{letter}": block[axis],
            f"%ctaid.{letter}": cta.index[axis],
            f"%nctaid.{letter}": grid[axis],
            f"%cluster_ctaid.{letter}": within[axis],
            f"%cluster_nctaid.{letter}": cluster[axis],
            f"%clusterid.{letter}": cta.index[axis] // cluster[axis],
            f"%nclusterid.{letter}": grid[axis] // cluster[axis],
        }
    return found

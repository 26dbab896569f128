"""What every part of a warp works with: registers, active lanes, what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from harness.interpreter.errors import UnsupportedPtxError
from harness.interpreter.lanes import LANE_ID, LANES, Array, Lanes, uniform
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.memory import RANK_SHIFT

if TYPE_CHECKING:
    from harness.interpreter.cluster import Cta

BLOCKED = -1
OFFSET = (1 << RANK_SHIFT) - 1


class BulkGroup:
    """One bulk async-group: stores whose shared memory is not read yet, stores not yet written."""

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0


class WarpState:
    """The state of one warp.

    Attributes:
        cta: the thread block that it belongs to.
        pc: index of the basic block to run next.
        mask: active lanes, None for all.
        count: how many are active.
        others: block and lanes of the fragments that wait for this one.
        result: what the wait that just ended says (the predicate of try_wait).
        waits_for: in words, with the mbarrier or whatever it is.
    """

    def __init__(self, cta: Cta, number: int, active: int = LANES) -> None:
        self.cta = cta
        self.cluster = cta.cluster
        self.number = number
        launch = cta.cluster.launch
        self.program = launch.program
        self.memory = launch.memory
        self.parameters = launch.parameters
        self.parameter_address = launch.parameter_address
        self.registers: list[Lanes] = [None] * self.program.register_count
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
        self._special = _special_registers(self)
        if active < LANES:
            self.become(active > LANE_ID)

    def run(self, budget: int) -> None:
        """Run basic blocks; see Warp."""
        raise NotImplementedError

    def give_up(self) -> None:
        """End a try_wait with false; see Warp."""
        raise NotImplementedError

    def wait(self, for_what: str, subject: Any, following: int, *, limited: bool = False) -> int:
        """Stop until `wake`; the warp goes on at the block `following`."""
        self.pc = following
        self.runnable = False
        self.waits_with_limit = limited
        self.waits_for = (for_what, subject)
        return BLOCKED

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
        self.cluster.ready.append(self)

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

    def describe(self) -> str:
        """Return where the warp stands and what it waits for."""
        for_what, subject = self.waits_for
        at = self.program.where(self.pc)
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


def _special_registers(warp: WarpState) -> dict[str, Lanes]:
    """Return the values of the special registers of a warp (PTX ISA 10)."""
    cta = warp.cta
    launch = cta.cluster.launch
    block, grid, cluster = launch.block, launch.grid, launch.cluster
    thread = LANE_ID + np.uint32(32 * warp.number)
    found: dict[str, Lanes] = {
        "%laneid": LANE_ID,
        "%tid.x": thread % np.uint32(block[0]) if block[1] * block[2] > 1 else thread,
        "%tid.y": thread // np.uint32(block[0]) % np.uint32(block[1]) if block[1] > 1 else 0,
        "%tid.z": thread // np.uint32(block[0] * block[1]) if block[2] > 1 else 0,
        "%cluster_ctarank": cta.rank,
        "%cluster_nctarank": len(cta.cluster.ctas),
        "%warpid": warp.number,
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

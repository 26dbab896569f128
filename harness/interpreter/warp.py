"""One warp: registers, the lanes that are active, and what it waits for. The instructions themselves are generated code.

Divergence: lanes that went different ways are fragments; the one with the lowest program counter runs, and fragments that
meet join. If it has to wait, the whole warp waits, as code compiled with `.sync` instructions expects.
"""

from __future__ import annotations

import numpy as np

from harness.interpreter.errors import InterpreterError, ProtocolError
from harness.interpreter.lanes import FIRST_LANE, LANE_ID, LANES, Lanes
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.warp_state import BLOCKED
from harness.interpreter.warp_tensor import WarpTensor
from harness.interpreter.warp_tma import WarpTma


class Warp(WarpTensor, WarpTma):
    """32 lanes that run one program."""

    def run(self, budget: int) -> None:
        """Run basic blocks until the warp waits, ends, or has used its budget."""
        program, registers = self.program, self.registers
        while budget > 0:
            budget -= 1
            at = self.pc
            try:
                if self.mask is None:
                    following = program.block(at)(self, registers, None)
                else:
                    following = program.partial_block(at, self.others)(self, registers, self.mask)
            except InterpreterError as error:
                error.add_note(f"in CTA {self.cta.index}, {self.describe()}")
                raise
            except TypeError as error:
                undefined = program.undefined(at, registers)
                if not undefined:
                    raise
                raise ProtocolError(
                    f"register {', '.join(undefined)} is read before it is written ({self.describe()})"
                ) from error
            if following >= 0:
                self.pc = following
            if self.others and not self.ended and following != BLOCKED:
                self.settle()
            if not self.runnable:
                return

    def give_up(self) -> None:
        """End a try_wait with false."""
        progress = self.cluster.progress
        _, barrier = self.waits_for
        if isinstance(barrier, MBarrier):
            barrier.waiters = [w for w in barrier.waiters if getattr(w, "__self__", None) is not self]
        self.wake(result=False)
        self.cluster.progress = progress  # nothing happened but time

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

    def trap(self) -> None:
        """Run trap.

        Raises:
            ProtocolError: always.
        """
        raise ProtocolError(f"trap at {self.program.where(self.pc)}")

    def elect(self) -> tuple[int, Lanes]:
        """Return elect.sync: the number of the first active lane, and the predicate that is true there."""
        if self.mask is None:
            return 0, FIRST_LANE
        first = int(np.argmax(self.mask))
        return first, first == LANE_ID

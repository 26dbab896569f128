"""A warp's shared memory, mbarriers and barriers (PTX ISA 9.7.9, 9.7.13)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.interpreter.errors import ProtocolError
from harness.interpreter.lanes import LANES, Array, Lanes, lanes, signed32
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.warp_state import OFFSET, WarpState


class WarpMemory(WarpState):
    """Loads, stores, atomics and waits of one warp."""

    def atomic(self, how: str, kind: str, address: Lanes, value: Lanes) -> Lanes:
        """Run atom on global memory, lane after lane; return what was there before."""
        size = 8 if kind.endswith("64") else 4
        active = np.ones(LANES, dtype=bool) if self.mask is None else self.mask
        places, values = lanes(address, np.uint64), lanes(value, np.uint64)
        before = np.zeros(LANES, dtype=np.uint64 if size == 8 else np.uint32)
        for lane in np.flatnonzero(active):
            at, new = int(places[lane]), int(values[lane])
            old = self.memory.load(at, size, None)
            before[lane] = old
            self.memory.store(at, _ATOMIC[how](old, new, kind) & ((1 << 8 * size) - 1), size, None)
        self.cluster.progress += 1
        return int(before[np.argmax(active)]) if self.count == 1 else before

    def shared_load(self, address: Lanes, size: int, mask: Array | None) -> Lanes:
        """Return ld.shared of the own CTA."""
        if isinstance(address, int):
            address &= OFFSET
        return self.cta.shared.load(address, size, mask)

    def shared_store(self, address: Lanes, values: list[Lanes], size: int, mask: Array | None) -> None:
        """Run st.shared of one value, or of several of 4 bytes side by side."""
        if isinstance(address, int):
            address &= OFFSET
        shared = self.cta.shared
        if len(values) == 1:
            self.unpublished.append((shared.store(address, values[0], size, mask), size))
        else:
            self.unpublished.append((shared.store_vector(address, values, mask), 4))

    def store_matrix(self, address: Lanes, values: list[Lanes], *, transposed: bool) -> None:
        """Run stmatrix.m8n8.b16: lane i gives the address of row i % 8 of matrix i / 8.

        Register j of lane t holds row t / 4, columns 2 * (t % 4) and the next, of matrix j; transposed, row and column
        change places.
        """
        if self.mask is not None:
            raise ProtocolError("stmatrix by a part of a warp")
        addresses = lanes(address, np.uint32)
        for number, value in enumerate(values):
            words = np.ascontiguousarray(lanes(value, np.uint32)).view(np.uint16).reshape(8, 8)
            if transposed:
                words = np.ascontiguousarray(words.T)
            rows = addresses[8 * number : 8 * number + 8]
            if (rows % np.uint32(16)).any():
                raise ProtocolError("stmatrix: a row address is no multiple of 16")
            padded = np.resize(rows, LANES)
            data = np.resize(words.view(np.uint32).reshape(8, 4), (LANES, 4))
            self.shared_store(padded, [np.ascontiguousarray(data[:, i]) for i in range(4)], 4, None)

    def publish(self) -> None:
        """Run fence.proxy.async: the asynchronous units see this warp's stores to shared memory."""
        for offsets, size in self.unpublished:
            self.cta.shared.publish(offsets, size)
        self.unpublished.clear()

    def mbarrier_init(self, address: Lanes, count: Lanes) -> None:
        """Run mbarrier.init."""
        at = self.one(address, "address of mbarrier.init") & OFFSET
        self.cta.shared.check(at, at + 8)
        self.cta.mbarriers[at] = MBarrier(
            f"{at:#x} of CTA {self.cta.index}", self.one(count, "mbarrier count")
        )

    def mbarrier_invalidate(self, address: Lanes) -> None:
        """Run mbarrier.inval."""
        at = self.one(address, "address of mbarrier.inval") & OFFSET
        if self.cta.mbarriers.pop(at, None) is None:
            raise ProtocolError(f"mbarrier.inval at {at:#x}: there is no mbarrier")

    def mbarrier_arrive(self, address: Lanes, count: Lanes = 1, expect: Lanes = 0) -> int:
        """Run mbarrier.arrive, with expect-tx first; every active lane counts."""
        barrier = self.cluster.mbarrier(self.one(address, "address of mbarrier.arrive"))
        if size := self.one(expect, "transaction bytes"):
            barrier.expect(size * self.count)
        self.cluster.progress += 1
        barrier.arrive(self.one(count, "arrival count") * self.count)
        return 0

    def mbarrier_expect(self, address: Lanes, size: Lanes) -> None:
        """Run mbarrier.expect_tx."""
        self.cluster.mbarrier(self.one(address, "address")).expect(
            self.one(size, "transaction bytes") * self.count
        )

    def mbarrier_wait(self, address: Lanes, parity: Lanes, following: int, *, blocking: bool) -> int:
        """Run test_wait or try_wait on a parity: `result` says whether the phase has completed."""
        barrier = self.cluster.mbarrier(self.one(address, "address of try_wait"))
        self.result = barrier.passed(self.one(parity, "phase parity"))
        if self.result or not blocking or self.cluster.schedule.returns_early():
            return following
        barrier.waiters.append(self.wake)
        self.cluster.sleep(self)
        return self.wait(f"mbarrier {barrier.where} parity {parity}", barrier, following, limited=True)

    def sync(self, number: Lanes, threads: Lanes, following: int) -> int:
        """Run bar.sync."""
        which, count = self.one(number, "barrier number"), self.one(threads, "barrier threads")
        if self.cta.barrier(which, count, self, waits=True):
            return following
        return self.wait(f"bar.sync {which} of {count} threads", None, following)

    def sync_arrive(self, number: Lanes, threads: Lanes) -> None:
        """Run bar.arrive."""
        self.cta.barrier(self.one(number, "barrier number"), self.one(threads, "threads"), self, waits=False)

    def cluster_arrive(self) -> None:
        """Run barrier.cluster.arrive."""
        self.cluster_phase = self.cluster.gather(self.count)

    def cluster_wait(self, following: int) -> int:
        """Run barrier.cluster.wait."""
        if self.cluster.gathered(self.cluster_phase, self):
            return following
        return self.wait("barrier.cluster", None, following)


_ATOMIC: dict[str, Callable[[int, int, str], int]] = {
    "add": lambda old, new, _: old + new,
    "or": lambda old, new, _: old | new,
    "and": lambda old, new, _: old & new,
    "exch": lambda _old, new, _: new,
    "max": lambda old, new, kind: max(old, new, key=signed32 if kind == "s32" else None),
    "min": lambda old, new, kind: min(old, new, key=signed32 if kind == "s32" else None),
}

"""What a warp's instructions do with memory, mbarriers and barriers (PTX ISA 9.7.9, 9.7.13)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.interpreter.errors import ProtocolError
from harness.interpreter.lanes import LANES, Array, Lanes, lanes, signed32
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.memory import SHARED_OFFSET
from harness.interpreter.warp import Warp


def atomic(warp: Warp, how: str, kind: str, address: Lanes, value: Lanes) -> Lanes:
    """Run atom on global memory, lane after lane; return what was there before."""
    size = 8 if kind.endswith("64") else 4
    active = np.ones(LANES, dtype=bool) if warp.mask is None else warp.mask
    places, values = lanes(address, np.uint64), lanes(value, np.uint64)
    before = np.zeros(LANES, dtype=np.uint64 if size == 8 else np.uint32)
    for lane in np.flatnonzero(active):
        at, new = int(places[lane]), int(values[lane])
        old = warp.memory.load(at, size, None)
        before[lane] = old
        warp.memory.store(at, _ATOMIC[how](old, new, kind) & ((1 << 8 * size) - 1), size, None)
    warp.cluster.progress += 1
    return int(before[np.argmax(active)]) if warp.count == 1 else before


def shared_load(warp: Warp, address: Lanes, size: int, mask: Array | None) -> Lanes:
    """Return ld.shared of the own CTA."""
    if isinstance(address, int):
        address &= SHARED_OFFSET
    return warp.cta.shared.load(address, size, mask)


def shared_store(warp: Warp, address: Lanes, values: list[Lanes], size: int, mask: Array | None) -> None:
    """Run st.shared of one value, or of several of 4 bytes side by side."""
    if isinstance(address, int):
        address &= SHARED_OFFSET
    shared = warp.cta.shared
    if len(values) == 1:
        warp.unpublished.append((shared.store(address, values[0], size, mask), size))
    else:
        warp.unpublished.append((shared.store_vector(address, values, mask), 4))


def store_matrix(warp: Warp, address: Lanes, values: list[Lanes], *, transposed: bool) -> None:
    """Run stmatrix.m8n8.b16: lane i gives the address of row i % 8 of matrix i / 8.

    Register j of lane t holds row t / 4, columns 2 * (t % 4) and the next, of matrix j; transposed, row and column
    change places.
    """
    if warp.mask is not None:
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
        shared_store(warp, padded, [np.ascontiguousarray(data[:, i]) for i in range(4)], 4, None)


def publish(warp: Warp) -> None:
    """Run fence.proxy.async: the asynchronous units see this warp's stores to shared memory."""
    for offsets, size in warp.unpublished:
        warp.cta.shared.publish(offsets, size)
    warp.unpublished.clear()


def mbarrier_init(warp: Warp, address: Lanes, count: Lanes) -> None:
    """Run mbarrier.init."""
    at = warp.one(address, "address of mbarrier.init") & SHARED_OFFSET
    warp.cta.shared.check(at, at + 8)
    warp.cta.mbarriers[at] = MBarrier(f"{at:#x} of CTA {warp.cta.index}", warp.one(count, "mbarrier count"))


def mbarrier_invalidate(warp: Warp, address: Lanes) -> None:
    """Run mbarrier.inval."""
    at = warp.one(address, "address of mbarrier.inval") & SHARED_OFFSET
    if warp.cta.mbarriers.pop(at, None) is None:
        raise ProtocolError(f"mbarrier.inval at {at:#x}: there is no mbarrier")


def mbarrier_arrive(warp: Warp, address: Lanes, count: Lanes = 1, expect: Lanes = 0) -> int:
    """Run mbarrier.arrive, with expect-tx first; every active lane counts."""
    barrier = warp.cluster.mbarrier(warp.one(address, "address of mbarrier.arrive"))
    if size := warp.one(expect, "transaction bytes"):
        barrier.expect(size * warp.count)
    warp.cluster.progress += 1
    barrier.arrive(warp.one(count, "arrival count") * warp.count)
    return 0


def mbarrier_expect(warp: Warp, address: Lanes, size: Lanes) -> None:
    """Run mbarrier.expect_tx."""
    warp.cluster.mbarrier(warp.one(address, "address")).expect(
        warp.one(size, "transaction bytes") * warp.count
    )


def mbarrier_wait(warp: Warp, address: Lanes, parity: Lanes, following: int, *, blocking: bool) -> int:
    """Run test_wait or try_wait on a parity: `result` says whether the phase has completed."""
    barrier = warp.cluster.mbarrier(warp.one(address, "address of try_wait"))
    warp.result = barrier.passed(warp.one(parity, "phase parity"))
    if warp.result or not blocking or warp.cluster.schedule.returns_early():
        return following
    return warp.wait_with_limit(f"mbarrier {barrier.where} parity {parity}", barrier, following)


def sync(warp: Warp, number: Lanes, threads: Lanes, following: int) -> int:
    """Run bar.sync."""
    which, count = warp.one(number, "barrier number"), warp.one(threads, "barrier threads")
    _check_whole(warp, which)
    if warp.cta.barrier(which, count, warp.wake):
        return following
    return warp.wait(f"bar.sync {which} of {count} threads", None, following)


def sync_arrive(warp: Warp, number: Lanes, threads: Lanes) -> None:
    """Run bar.arrive."""
    which, count = warp.one(number, "barrier number"), warp.one(threads, "threads")
    _check_whole(warp, which)
    warp.cta.barrier(which, count, None)


def _check_whole(warp: Warp, number: int) -> None:
    if warp.mask is not None:
        raise ProtocolError(f"bar.sync {number} by a part of a warp is not modelled ({warp.describe()})")


def cluster_arrive(warp: Warp) -> None:
    """Run barrier.cluster.arrive."""
    warp.cluster_phase = warp.cluster.gather(warp.count)


def cluster_wait(warp: Warp, following: int) -> int:
    """Run barrier.cluster.wait."""
    if warp.cluster.gathered(warp.cluster_phase, warp.wake):
        return following
    return warp.wait("barrier.cluster", None, following)


_ATOMIC: dict[str, Callable[[int, int, str], int]] = {
    "add": lambda old, new, _: old + new,
    "or": lambda old, new, _: old | new,
    "and": lambda old, new, _: old & new,
    "exch": lambda _old, new, _: new,
    "max": lambda old, new, kind: max(old, new, key=signed32 if kind == "s32" else None),
    "min": lambda old, new, kind: min(old, new, key=signed32 if kind == "s32" else None),
}

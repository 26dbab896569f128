"""One warp: registers, the lanes that are active, and what it waits for. The instructions themselves are generated code.

Divergence: lanes that went different ways are fragments; the one with the lowest program counter runs, and fragments that
meet join. If it has to wait, the whole warp waits, as code compiled with `.sync` instructions expects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from harness.interpreter import tma
from harness.interpreter.errors import InterpreterError, ProtocolError, UnsupportedPtxError
from harness.interpreter.lanes import LANE_ID, LANES, Array, Lanes, lanes, signed32, uniform
from harness.interpreter.memory import RANK_SHIFT
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.tensor_core import MmaKind, copy_scales, multiply
from harness.interpreter.tensor_map import TensorMap, decode_tensor_map

if TYPE_CHECKING:
    from harness.interpreter.machine import Cta

BLOCKED = -1
_OFFSET = (1 << RANK_SHIFT) - 1


class BulkGroup:
    """One bulk async-group: stores whose shared memory is not read yet, stores not yet written."""

    def __init__(self) -> None:
        self.reads = 0
        self.writes = 0


class Warp:
    """32 lanes that run one program.

    Attributes:
        pc: index of the basic block to run next.
        mask: active lanes, None for all.
        count: how many are active.
        result: what the wait that just ended says (the predicate of try_wait).
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
        self._waits_for: tuple[str, Any] = ("", None)
        self._bulk: list[BulkGroup] = []
        self._open = BulkGroup()
        self._unpublished: list[tuple[Array, int]] = []
        self._cluster_phase = 0
        self._special = _special_registers(self)
        if active < LANES:
            self._become(LANE_ID < active)

    # Running

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
                raise ProtocolError(f"register {', '.join(undefined)} is read before it is written ({self.describe()})") from error
            if following >= 0:
                self.pc = following
            if self.others and not self.ended and following != BLOCKED:
                self._settle()
            if not self.runnable:
                return

    def wait(self, for_what: str, subject: Any, following: int, *, limited: bool = False) -> int:
        """Stop until `wake`; the warp goes on at the block `following`."""
        self.pc = following
        self.runnable = False
        self.waits_with_limit = limited
        self._waits_for = (for_what, subject)
        return BLOCKED

    def wake(self, result: bool = True) -> None:
        """End a wait."""
        if self.runnable or self.ended:
            return
        self.runnable = True
        self.waits_with_limit = False
        self.result = result
        if self.others:
            self._settle()
        self.cluster.progress += 1
        self.cluster.ready.append(self)

    def give_up(self) -> None:
        """End a try_wait with false."""
        progress = self.cluster.progress
        _, barrier = self._waits_for
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
        first, second = ((taken, jumps), (following, stays)) if taken < following else ((following, stays), (taken, jumps))
        self.others.append(second)
        self._become(first[1])
        return first[0]

    def leave(self) -> int:
        """End the active lanes (ret, exit)."""
        if self.others:
            self.others.sort(key=lambda other: other[0])
            self.pc, mask = self.others.pop(0)
            self._become(mask)
            return self.pc
        if self._open.reads or self._open.writes:
            raise ProtocolError(f"{self.describe()} ends with bulk copies that no commit_group covers")
        self.ended, self.runnable = True, False
        return BLOCKED

    def _become(self, mask: Array) -> None:
        self.count = int(mask.sum())
        self.mask = None if self.count == LANES else mask

    def _settle(self) -> None:
        """Run the lowest program counter; join fragments that stand at the same one."""
        mask = self.mask if self.mask is not None else np.ones(LANES, dtype=bool)
        found: dict[int, Array] = {self.pc: mask}
        for pc, other in self.others:
            found[pc] = found[pc] | other if pc in found else other
        self.pc = min(found)
        self._become(found.pop(self.pc))
        self.others = list(found.items())

    def describe(self) -> str:
        """Return where the warp stands and what it waits for."""
        for_what, subject = self._waits_for
        at = self.program.where(self.pc)
        state = "ended" if self.ended else f"at {at}"
        if not self.runnable and not self.ended:
            detail = f" ({subject.describe()})" if isinstance(subject, MBarrier) else ""
            state = f"waits for {for_what}{detail} before {at}"
        lanes = "" if self.count == LANES else f", {self.count} lanes active"
        return f"warp {self.number} {state}{lanes}"

    # Registers that the hardware sets

    def special(self, name: str) -> Lanes:
        """Return a special register such as %tid.x."""
        if name not in self._special:
            raise UnsupportedPtxError(f"special register {name} is not modelled")
        return self._special[name]

    def one(self, value: Lanes, what: str) -> int:
        """Return a value that must be the same in all active lanes."""
        return value if isinstance(value, int) else uniform(value, self.mask, what)

    def whole(self, op: str, members: Lanes) -> None:
        """Check that exactly the lanes that a `.sync` instruction names are there.

        Raises:
            ProtocolError: they are not.
        """
        wanted = self.one(members, "member mask")
        active = 0xFFFF_FFFF if self.mask is None else sum(1 << int(lane) for lane in np.flatnonzero(self.mask))
        if wanted != active:
            raise ProtocolError(f"{op} names the lanes {wanted:#010x}, active are {active:#010x}")

    def trap(self) -> None:
        """Run trap.

        Raises:
            ProtocolError: always.
        """
        raise ProtocolError(f"trap at {self.program.where(self.pc)}")

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

    def elect(self) -> tuple[int, Lanes]:
        """Return elect.sync: the number of the first active lane, and the predicate that is true there."""
        if self.mask is None:
            return 0, _FIRST
        first = int(np.argmax(self.mask))
        return first, LANE_ID == first

    # Shared memory, generic proxy

    def shared_load(self, address: Lanes, size: int, mask: Array | None) -> Lanes:
        """Return ld.shared of the own CTA."""
        if isinstance(address, int):
            address &= _OFFSET
        return self.cta.shared.load(address, size, mask)

    def shared_store(self, address: Lanes, values: list[Lanes], size: int, mask: Array | None) -> None:
        """Run st.shared of one value, or of several of 4 bytes side by side."""
        if isinstance(address, int):
            address &= _OFFSET
        shared = self.cta.shared
        if len(values) == 1:
            self._unpublished.append((shared.store(address, values[0], size, mask), size))
        else:
            self._unpublished.append((shared.store_vector(address, values, mask), 4))

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
        for offsets, size in self._unpublished:
            self.cta.shared.publish(offsets, size)
        self._unpublished.clear()

    # mbarriers

    def mbarrier_init(self, address: Lanes, count: Lanes) -> None:
        """Run mbarrier.init."""
        at = self.one(address, "address of mbarrier.init") & _OFFSET
        self.cta.shared.check(at, at + 8)
        self.cta.mbarriers[at] = MBarrier(f"{at:#x} of CTA {self.cta.index}", self.one(count, "mbarrier count"))

    def mbarrier_invalidate(self, address: Lanes) -> None:
        """Run mbarrier.inval."""
        at = self.one(address, "address of mbarrier.inval") & _OFFSET
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
        self.cluster.mbarrier(self.one(address, "address")).expect(self.one(size, "transaction bytes") * self.count)

    def mbarrier_wait(self, address: Lanes, parity: Lanes, following: int, *, blocking: bool) -> int:
        """Run test_wait or try_wait on a parity: `result` says whether the phase has completed."""
        barrier = self.cluster.mbarrier(self.one(address, "address of try_wait"))
        self.result = barrier.passed(self.one(parity, "phase parity"))
        if self.result or not blocking or self.cluster.schedule.returns_early():
            return following
        barrier.waiters.append(self.wake)
        self.cluster.sleep(self)
        return self.wait(f"mbarrier {barrier.where} parity {parity}", barrier, following, limited=True)

    # Barriers of the CTA and of the cluster

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
        self._cluster_phase = self.cluster.gather(self.count)

    def cluster_wait(self, following: int) -> int:
        """Run barrier.cluster.wait."""
        if self.cluster.gathered(self._cluster_phase, self):
            return following
        return self.wait("barrier.cluster", None, following)

    # TMA

    def tensor_map(self, address: Lanes) -> TensorMap:
        """Return the decoded tensor map at a generic address."""
        at = self.one(address, "address of the tensor map")
        buffer = self.memory.find(at, 128)
        offset = at - buffer.base
        return self.program.tensor_map(buffer.bytes[offset : offset + 128].tobytes(), decode_tensor_map)

    def _coordinates(self, tensor_map: TensorMap, at: list[Lanes]) -> tuple[int, ...]:
        """Return the coordinates of a copy; a map may have one dimension more, of extent 1, which counts as 0."""
        where = tuple(_coordinate(self.one(c, "TMA coordinate")) for c in at)
        missing = tensor_map.extents[len(where) :]
        if len(where) > len(tensor_map.box) or any(extent != 1 for extent in missing):
            raise UnsupportedPtxError(f"TMA copy of {len(where)} coordinates with a tensor map of extents {tensor_map.extents}")
        return where + (0,) * len(missing)

    def tma_load(
        self, target: Lanes, tensor: Lanes, at: list[Lanes], barrier: Lanes, *, ctas: Lanes = None, pair: bool = False
    ) -> None:
        """Run cp.async.bulk.tensor from global to shared memory.

        Args:
            target: shared address in the own CTA; the same offset in every CTA of a multicast.
            tensor: address of the tensor map.
            at: coordinates, innermost first.
            barrier: mbarrier that counts the bytes; the same offset in every CTA of a multicast.
            ctas: multicast mask, None for none.
            pair: .cta_group::2: the barrier may be the one of the other CTA of the pair.
        """
        if self.count != 1:
            raise ProtocolError(f"a TMA load is issued by {self.count} lanes: each would count its bytes")
        tensor_map = self.tensor_map(tensor)
        where = self._coordinates(tensor_map, at)
        destination, signal = self.one(target, "TMA target"), self.one(barrier, "TMA mbarrier")
        if ctas is None:
            ranks = [destination >> RANK_SHIFT]
        else:
            wanted = self.one(ctas, "multicast mask")
            ranks = [cta.rank for cta in self.cluster.ctas if wanted >> cta.rank & 1]
            if wanted >> len(self.cluster.ctas):
                raise ProtocolError(f"multicast mask {wanted:#x}: the cluster has {len(self.cluster.ctas)} CTAs")
        own = self.cta.rank
        if not pair and signal >> RANK_SHIFT != own:
            raise ProtocolError(f"TMA load of CTA {own} signals CTA {signal >> RANK_SHIFT} without .cta_group::2")

        def run() -> None:
            box = tma.load_box(tensor_map, self.memory, where)
            for rank in ranks:
                tma.write_shared(box, tensor_map, self.cluster.ctas[rank].shared, destination & _OFFSET)
                signalled = rank & ~1 | signal >> RANK_SHIFT & 1 if pair else rank
                self.cluster.mbarrier(signalled << RANK_SHIFT | signal & _OFFSET).complete(tensor_map.box_bytes)

        self.cluster.post(run, None, "TMA load")

    def tma_store(self, tensor: Lanes, at: list[Lanes], source: Lanes) -> None:
        """Run cp.async.bulk.tensor from shared to global memory: one per warp, of the own CTA, in the open bulk group."""
        tensor_map = self.tensor_map(tensor)
        where = self._coordinates(tensor_map, at)
        offset = self.one(source, "TMA source") & _OFFSET
        group, shared = self._open, self.cta.shared
        group.reads += 1
        group.writes += 1

        def read() -> None:
            box = tma.read_shared(tensor_map, shared, offset).copy()
            group.reads -= 1
            self._bulk_progress()

            def write() -> None:
                tma.store_box(box, tensor_map, self.memory, where)
                group.writes -= 1
                self._bulk_progress()

            self.cluster.post(write, None, "TMA store, write")

        self.cluster.post(read, None, "TMA store, read")

    def bulk_commit(self) -> None:
        """Run cp.async.bulk.commit_group."""
        self._bulk.append(self._open)
        self._open = BulkGroup()

    def bulk_wait(self, allowed: Lanes, following: int, *, read: bool) -> int:
        """Run cp.async.bulk.wait_group: all but the newest `allowed` groups must be done, or read for `.read`."""
        keep = self.one(allowed, "groups")
        if self._bulk_done(keep, read=read):
            return following
        what = f"cp.async.bulk.wait_group{'.read' if read else ''} {keep}"
        return self.wait(what, (keep, read), following)

    def _bulk_done(self, keep: int, *, read: bool) -> bool:
        older = self._bulk[: len(self._bulk) - keep] if keep else self._bulk
        if any(group.reads if read else group.writes for group in older):
            return False
        self._bulk = [group for group in self._bulk if group.reads or group.writes or group not in older]
        return True

    def _bulk_progress(self) -> None:
        for_what, subject = self._waits_for
        if not self.runnable and not self.ended and for_what.startswith("cp.async.bulk") and self._bulk_done(subject[0], read=subject[1]):
            self.wake()

    # Tensor core

    def pair(self, group: int) -> list[Cta]:
        """Return the CTAs of a cta_group: the own one, or both of the pair, the even rank first."""
        if group == 1:
            return [self.cta]
        first = self.cta.rank & ~1
        if first + 1 >= len(self.cluster.ctas):
            raise ProtocolError(".cta_group::2 in a cluster without a pair of CTAs")
        return self.cluster.ctas[first : first + 2]

    def tensor_post(self, run: Any, group: int, name: str) -> None:
        """Hand an operation to the tensor core of a CTA or a pair, which works in order."""
        if self.count != 1:
            raise ProtocolError(f"{name} is issued by {self.count} lanes")
        self.cluster.post(run, ("tensor core", self.pair(group)[0].rank), name)

    def tensor_copy(self, group: int, address: Lanes, descriptor: Lanes) -> None:
        """Run tcgen05.cp.32x128b.warpx4: with a pair, each CTA copies from its own shared memory."""
        to, source = self.one(address, "tcgen05.cp target"), self.one(descriptor, "tcgen05.cp source")
        ctas = self.pair(group)

        def run() -> None:
            for cta in ctas:
                copy_scales(cta, to, source)

        self.tensor_post(run, group, "tcgen05.cp")

    def tensor_multiply(
        self, group: int, kind: MmaKind, result: Lanes, a: Lanes, b: Lanes, descriptor: Lanes, a_scale: Lanes,
        b_scale: Lanes, accumulate: Lanes,
    ) -> None:  # fmt: skip
        """Run tcgen05.mma with block scales."""
        numbers = [self.one(x, "tcgen05.mma operand") for x in (result, a, b, descriptor, a_scale, b_scale)]
        enabled = bool(self.one(accumulate, "enable-input-d"))
        ctas = self.pair(group)
        if group == 2 and self.cta.rank & 1:
            raise ProtocolError("tcgen05.mma.cta_group::2 is issued by the odd CTA of the pair")

        def run() -> None:
            multiply(list(ctas), kind, *numbers, accumulate=enabled)

        self.tensor_post(run, group, "tcgen05.mma")

    def tensor_commit(self, group: int, address: Lanes, ctas: Lanes = None) -> None:
        """Run tcgen05.commit: an arrival once everything issued before is done, in each CTA of a multicast."""
        at = self.one(address, "mbarrier of tcgen05.commit")
        if ctas is None:
            targets = [at]
        else:
            wanted = self.one(ctas, "multicast mask")
            targets = [rank << RANK_SHIFT | at & _OFFSET for rank in range(16) if wanted >> rank & 1]

        def run() -> None:
            for target in targets:
                self.cluster.mbarrier(target).arrive()

        self.tensor_post(run, group, "tcgen05.commit")

    def tensor_allocate(self, address: Lanes, columns: Lanes, following: int) -> int:
        """Run tcgen05.alloc: the first column goes to shared memory."""
        if self.mask is not None:
            raise ProtocolError("tcgen05.alloc by a part of a warp")
        start = self.cta.tensor.allocate(self.one(columns, "columns"))
        if start is None:
            raise UnsupportedPtxError("tcgen05.alloc has to wait for another allocation, which is not modelled")
        self.shared_store(self.one(address, "tcgen05.alloc address"), [start], 4, None)
        return following


def _coordinate(bits: int) -> int:
    return bits - ((bits & 0x8000_0000) << 1)


_FIRST = LANE_ID == 0
_ATOMIC = {
    "add": lambda old, new, _: old + new,
    "or": lambda old, new, _: old | new,
    "and": lambda old, new, _: old & new,
    "exch": lambda _old, new, _: new,
    "max": lambda old, new, kind: max(old, new, key=signed32 if kind == "s32" else None),
    "min": lambda old, new, kind: min(old, new, key=signed32 if kind == "s32" else None),
}


def _special_registers(warp: Warp) -> dict[str, Lanes]:
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
        within = (cta.rank % cluster[0], cta.rank // cluster[0] % cluster[1], cta.rank // (cluster[0] * cluster[1]))
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

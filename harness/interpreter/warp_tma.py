"""A warp's use of the tensor memory accelerator: loads, stores, bulk groups (PTX ISA 9.7.9.25 to 27)."""

from __future__ import annotations

from harness.interpreter import tma
from harness.interpreter.errors import ProtocolError, UnsupportedPtxError
from harness.interpreter.lanes import Lanes
from harness.interpreter.memory import RANK_SHIFT
from harness.interpreter.tensor_map import TensorMap, decode_tensor_map
from harness.interpreter.warp_state import OFFSET, BulkGroup, WarpState


class WarpTma(WarpState):
    """TMA operations of one warp."""

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
            raise UnsupportedPtxError(
                f"TMA copy of {len(where)} coordinates with a tensor map of extents {tensor_map.extents}"
            )
        return where + (0,) * len(missing)

    def tma_load(
        self,
        target: Lanes,
        tensor: Lanes,
        at: list[Lanes],
        barrier: Lanes,
        *,
        ctas: Lanes = None,
        pair: bool = False,
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
                raise ProtocolError(
                    f"multicast mask {wanted:#x}: the cluster has {len(self.cluster.ctas)} CTAs"
                )
        own = self.cta.rank
        if not pair and signal >> RANK_SHIFT != own:
            raise ProtocolError(
                f"TMA load of CTA {own} signals CTA {signal >> RANK_SHIFT} without .cta_group::2"
            )

        def run() -> None:
            box = tma.load_box(tensor_map, self.memory, where)
            for rank in ranks:
                tma.write_shared(box, tensor_map, self.cluster.ctas[rank].shared, destination & OFFSET)
                signalled = rank & ~1 | signal >> RANK_SHIFT & 1 if pair else rank
                self.cluster.mbarrier(signalled << RANK_SHIFT | signal & OFFSET).complete(
                    tensor_map.box_bytes
                )

        self.cluster.post(run, None, "TMA load")

    def tma_store(self, tensor: Lanes, at: list[Lanes], source: Lanes) -> None:
        """Run cp.async.bulk.tensor from shared to global memory: one per warp, of the own CTA, in the open bulk group."""
        tensor_map = self.tensor_map(tensor)
        where = self._coordinates(tensor_map, at)
        offset = self.one(source, "TMA source") & OFFSET
        group, shared = self.open, self.cta.shared
        group.reads += 1
        group.writes += 1

        def read() -> None:
            box = tma.read_shared(tensor_map, shared, offset).copy()
            group.reads -= 1
            self.bulk_progress()

            def write() -> None:
                tma.store_box(box, tensor_map, self.memory, where)
                group.writes -= 1
                self.bulk_progress()

            self.cluster.post(write, None, "TMA store, write")

        self.cluster.post(read, None, "TMA store, read")

    def bulk_commit(self) -> None:
        """Run cp.async.bulk.commit_group."""
        self.bulk.append(self.open)
        self.open = BulkGroup()

    def bulk_wait(self, allowed: Lanes, following: int, *, read: bool) -> int:
        """Run cp.async.bulk.wait_group: all but the newest `allowed` groups must be done, or read for `.read`."""
        keep = self.one(allowed, "groups")
        if self.bulk_done(keep, read=read):
            return following
        what = f"cp.async.bulk.wait_group{'.read' if read else ''} {keep}"
        return self.wait(what, (keep, read), following)

    def bulk_done(self, keep: int, *, read: bool) -> bool:
        """Return whether all but the newest `keep` groups are done; done ones are forgotten."""
        older = self.bulk[: len(self.bulk) - keep] if keep else self.bulk
        if any(group.reads if read else group.writes for group in older):
            return False
        self.bulk = [group for group in self.bulk if group.reads or group.writes or group not in older]
        return True

    def bulk_progress(self) -> None:
        """Wake the warp if it waits for groups that are now done."""
        for_what, subject = self.waits_for
        if (
            not self.runnable
            and not self.ended
            and for_what.startswith("cp.async.bulk")
            and self.bulk_done(subject[0], read=subject[1])
        ):
            self.wake()


def _coordinate(bits: int) -> int:
    return bits - ((bits & 0x8000_0000) << 1)

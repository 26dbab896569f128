"""What a warp's instructions do with the tensor memory accelerator: loads, stores, bulk groups (PTX ISA 9.7.9.25 to 27)."""

from __future__ import annotations

from harness.interpreter import tma
from harness.interpreter.errors import ProtocolError, UnsupportedPtxError
from harness.interpreter.lanes import Lanes
from harness.interpreter.memory import RANK_SHIFT, SHARED_OFFSET
from harness.interpreter.tensor_map import TensorMap, decode_tensor_map
from harness.interpreter.warp import BulkGroup, Warp


def _tensor_map(warp: Warp, address: Lanes) -> TensorMap:
    """Return the decoded tensor map at a generic address."""
    at = warp.one(address, "address of the tensor map")
    buffer = warp.memory.find(at, 128)
    offset = at - buffer.base
    return decode_tensor_map(buffer.bytes[offset : offset + 128].tobytes())


def _coordinates(warp: Warp, tensor_map: TensorMap, at: list[Lanes]) -> tuple[int, ...]:
    """Return the coordinates of a copy; a map may have one dimension more, of extent 1, which counts as 0."""
    where = tuple(_coordinate(warp.one(c, "TMA coordinate")) for c in at)
    missing = tensor_map.extents[len(where) :]
    if len(where) > len(tensor_map.box) or any(extent != 1 for extent in missing):
        raise UnsupportedPtxError(
            f"TMA copy of {len(where)} coordinates with a tensor map of extents {tensor_map.extents}"
        )
    return where + (0,) * len(missing)


def tma_load(
    warp: Warp,
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
        warp: one active lane of it issues the copy.
        target: shared address in the own CTA; the same offset in every CTA of a multicast.
        tensor: address of the tensor map.
        at: coordinates, innermost first.
        barrier: mbarrier that counts the bytes; the same offset in every CTA of a multicast.
        ctas: multicast mask, None for none.
        pair: .cta_group::2: the barrier may be the one of the other CTA of the pair.
    """
    if warp.count != 1:
        raise ProtocolError(f"a TMA load is issued by {warp.count} lanes: each would count its bytes")
    tensor_map = _tensor_map(warp, tensor)
    where = _coordinates(warp, tensor_map, at)
    destination, signal = warp.one(target, "TMA target"), warp.one(barrier, "TMA mbarrier")
    if ctas is None:
        ranks = [destination >> RANK_SHIFT]
    else:
        wanted = warp.one(ctas, "multicast mask")
        ranks = [cta.rank for cta in warp.cluster.ctas if wanted >> cta.rank & 1]
        if wanted >> len(warp.cluster.ctas):
            raise ProtocolError(f"multicast mask {wanted:#x}: the cluster has {len(warp.cluster.ctas)} CTAs")
    own = warp.cta.rank
    if not pair and signal >> RANK_SHIFT != own:
        raise ProtocolError(f"TMA load of CTA {own} signals CTA {signal >> RANK_SHIFT} without .cta_group::2")

    def run() -> None:
        box = tma.load_box(tensor_map, warp.memory, where)
        for rank in ranks:
            tma.write_shared(box, tensor_map, warp.cluster.ctas[rank].shared, destination & SHARED_OFFSET)
            signalled = rank & ~1 | signal >> RANK_SHIFT & 1 if pair else rank
            warp.cluster.mbarrier(signalled << RANK_SHIFT | signal & SHARED_OFFSET).complete(
                tensor_map.box_bytes
            )

    warp.cluster.post(run, None, "TMA load")


def tma_store(warp: Warp, tensor: Lanes, at: list[Lanes], source: Lanes) -> None:
    """Run cp.async.bulk.tensor from shared to global memory: one per warp, of the own CTA, in the open bulk group."""
    tensor_map = _tensor_map(warp, tensor)
    where = _coordinates(warp, tensor_map, at)
    offset = warp.one(source, "TMA source") & SHARED_OFFSET
    group, shared = warp.open, warp.cta.shared
    group.reads += 1
    group.writes += 1

    def read() -> None:
        box = tma.read_shared(tensor_map, shared, offset).copy()
        group.reads -= 1
        _bulk_progress(warp)

        def write() -> None:
            tma.store_box(box, tensor_map, warp.memory, where)
            group.writes -= 1
            _bulk_progress(warp)

        warp.cluster.post(write, None, "TMA store, write")

    warp.cluster.post(read, None, "TMA store, read")


def bulk_commit(warp: Warp) -> None:
    """Run cp.async.bulk.commit_group."""
    warp.bulk.append(warp.open)
    warp.open = BulkGroup()


def bulk_wait(warp: Warp, allowed: Lanes, following: int, *, read: bool) -> int:
    """Run cp.async.bulk.wait_group: all but the newest `allowed` groups must be done, or read for `.read`."""
    keep = warp.one(allowed, "groups")
    if _bulk_done(warp, keep, read=read):
        return following
    what = f"cp.async.bulk.wait_group{'.read' if read else ''} {keep}"
    return warp.wait(what, (keep, read), following)


def _bulk_done(warp: Warp, keep: int, *, read: bool) -> bool:
    """Return whether all but the newest `keep` groups are done; done ones are forgotten."""
    older = warp.bulk[: len(warp.bulk) - keep] if keep else warp.bulk
    if any(group.reads if read else group.writes for group in older):
        return False
    warp.bulk = [group for group in warp.bulk if group.reads or group.writes or group not in older]
    return True


def _bulk_progress(warp: Warp) -> None:
    """Wake the warp if it waits for groups that are now done."""
    for_what, subject = warp.waits_for
    if (
        not warp.runnable
        and not warp.ended
        and for_what.startswith("cp.async.bulk")
        and _bulk_done(warp, subject[0], read=subject[1])
    ):
        warp.wake()


def _coordinate(bits: int) -> int:
    return bits - ((bits & 0x8000_0000) << 1)

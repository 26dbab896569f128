"""What a warp's instructions do with the tensor core: tcgen05.cp, mma, commit, alloc (PTX ISA 9.7.16)."""

from __future__ import annotations

from collections.abc import Callable

from harness.interpreter.cluster import Cta
from harness.interpreter.errors import ProtocolError, UnsupportedPtxError
from harness.interpreter.lanes import Lanes
from harness.interpreter.memory import RANK_SHIFT, SHARED_OFFSET
from harness.interpreter.tensor_core import MmaKind, copy_scales, multiply
from harness.interpreter.warp import Warp
from harness.interpreter.warp_memory import shared_store


def _pair(warp: Warp, group: int) -> list[Cta]:
    """Return the CTAs of a cta_group: the own one, or both of the pair, the even rank first."""
    if group == 1:
        return [warp.cta]
    first = warp.cta.rank & ~1
    if first + 1 >= len(warp.cluster.ctas):
        raise ProtocolError(".cta_group::2 in a cluster without a pair of CTAs")
    return warp.cluster.ctas[first : first + 2]


def _post(warp: Warp, run: Callable[[], None], group: int, name: str) -> None:
    """Hand an operation to the tensor core of a CTA or a pair, which works in order."""
    if warp.count != 1:
        raise ProtocolError(f"{name} is issued by {warp.count} lanes")
    warp.cluster.post(run, ("tensor core", _pair(warp, group)[0].rank), name)


def tensor_copy(warp: Warp, group: int, address: Lanes, descriptor: Lanes) -> None:
    """Run tcgen05.cp.32x128b.warpx4: with a pair, each CTA copies from its own shared memory."""
    to, source = warp.one(address, "tcgen05.cp target"), warp.one(descriptor, "tcgen05.cp source")
    ctas = _pair(warp, group)

    def run() -> None:
        for cta in ctas:
            copy_scales(cta, to, source)

    _post(warp, run, group, "tcgen05.cp")


def tensor_multiply(
    warp: Warp, group: int, kind: MmaKind, result: Lanes, a: Lanes, b: Lanes, descriptor: Lanes, a_scale: Lanes,
    b_scale: Lanes, accumulate: Lanes,
) -> None:  # fmt: skip
    """Run tcgen05.mma with block scales."""
    numbers = [warp.one(x, "tcgen05.mma operand") for x in (result, a, b, descriptor, a_scale, b_scale)]
    enabled = bool(warp.one(accumulate, "enable-input-d"))
    ctas = _pair(warp, group)
    if group == 2 and warp.cta.rank & 1:
        raise ProtocolError("tcgen05.mma.cta_group::2 is issued by the odd CTA of the pair")

    def run() -> None:
        multiply(list(ctas), kind, *numbers, accumulate=enabled)

    _post(warp, run, group, "tcgen05.mma")


def tensor_commit(warp: Warp, group: int, address: Lanes, ctas: Lanes = None) -> None:
    """Run tcgen05.commit: an arrival once everything issued before is done, in each CTA of a multicast."""
    at = warp.one(address, "mbarrier of tcgen05.commit")
    if ctas is None:
        targets = [at]
    else:
        wanted = warp.one(ctas, "multicast mask")
        targets = [rank << RANK_SHIFT | at & SHARED_OFFSET for rank in range(16) if wanted >> rank & 1]

    def run() -> None:
        for target in targets:
            warp.cluster.mbarrier(target).arrive()

    _post(warp, run, group, "tcgen05.commit")


def tensor_allocate(warp: Warp, address: Lanes, columns: Lanes, following: int) -> int:
    """Run tcgen05.alloc: the first column goes to shared memory."""
    if warp.mask is not None:
        raise ProtocolError("tcgen05.alloc by a part of a warp")
    start = warp.cta.tensor.allocate(warp.one(columns, "columns"))
    if start is None:
        raise UnsupportedPtxError("tcgen05.alloc has to wait for another allocation, which is not modelled")
    shared_store(warp, warp.one(address, "tcgen05.alloc address"), [start], 4, None)
    return following

"""A warp's use of the tensor core: tcgen05.cp, mma, commit, alloc (PTX ISA 9.7.16)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.interpreter.errors import ProtocolError, UnsupportedPtxError
from harness.interpreter.lanes import Lanes
from harness.interpreter.memory import RANK_SHIFT
from harness.interpreter.tensor_core import MmaKind, copy_scales, multiply
from harness.interpreter.warp_memory import WarpMemory
from harness.interpreter.warp_state import OFFSET

if TYPE_CHECKING:
    from harness.interpreter.cluster import Cta


class WarpTensor(WarpMemory):
    """tcgen05 operations of one warp."""

    def pair(self, group: int) -> list[Cta]:
        """Return the CTAs of a cta_group: the own one, or both of the pair, the even rank first."""
        if group == 1:
            return [self.cta]
        first = self.cta.rank & ~1
        if first + 1 >= len(self.cluster.ctas):
            raise ProtocolError(".cta_group::2 in a cluster without a pair of CTAs")
        return self.cluster.ctas[first : first + 2]

    def tensor_post(self, run: Callable[[], None], group: int, name: str) -> None:
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
            targets = [rank << RANK_SHIFT | at & OFFSET for rank in range(16) if wanted >> rank & 1]

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
            raise UnsupportedPtxError(
                "tcgen05.alloc has to wait for another allocation, which is not modelled"
            )
        self.shared_store(self.one(address, "tcgen05.alloc address"), [start], 4, None)
        return following

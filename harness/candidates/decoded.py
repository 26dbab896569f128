"""Decoded weights are kept: a model multiplies with the same NVFP4 operands again and again.

What is kept is found by what the operand holds, checked byte for byte against a copy: callers hand over copies, at other places
in memory. An operand that changed, in place or not, is decoded anew: the result never depends on earlier calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 1 << 28
"""Bytes of decoded elements kept in all. One operand of more than a quarter of that in float64 is not kept: it would push out
the others."""
_FLOAT64 = 16  # bytes of float64 that a packed byte is decoded to
_SAMPLES = 16  # bytes by which operands are told apart before they are compared


def keeps(packed: Tensor) -> bool:
    """Return whether a packed operand is small enough to be kept decoded."""
    return packed.numel() * _FLOAT64 <= LIMIT // 4


class DecodedOperands:
    """The most recently used decoded operands."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[object, ...], tuple[Tensor, Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def get(self, packed: Tensor, scales: Tensor, decode: Callable[[], Tensor]) -> Tensor:
        """Return the decoded operand; the caller must not write to it.

        Args:
            packed: codes, uint8, contiguous.
            scales: all bytes that the values depend on besides, uint8, contiguous.
            decode: gives the values of the two.
        """
        if not keeps(packed):
            return decode()
        key = (*_some_bytes(packed), *_some_bytes(scales), packed.shape, scales.shape, str(packed.device))
        kept = self._kept.get(key)
        if kept is not None and _equal(kept[0], packed) and _equal(kept[1], scales):
            self._kept.move_to_end(key)
            return kept[2]
        values = decode()
        if kept is not None:
            self._bytes -= kept[2].nbytes
        self._kept[key] = (packed.clone(), scales.clone(), values)
        self._kept.move_to_end(key)
        self._bytes += values.nbytes
        while self._bytes > LIMIT:
            _, (_, _, oldest) = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return values


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two contiguous uint8 tensors of one shape are equal: eight bytes at a time, where torch compares one."""
    import torch

    flat = one.flatten(), other.flatten()
    if any(side.storage_offset() % 8 for side in flat):
        return torch.equal(*flat)
    whole = len(flat[0]) // 8 * 8
    return torch.equal(*(side[whole:] for side in flat)) and torch.equal(
        *(side[:whole].view(torch.int64) for side in flat)
    )


def _some_bytes(tensor: Tensor) -> list[int]:
    """Return a few bytes of a tensor, from all over it."""
    flat = tensor.flatten()
    found: list[int] = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].tolist()
    return found

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

LIMIT = 1 << 27
"""Bytes of decoded elements kept in all. One operand of more than a quarter of that in float32 is not kept: it would push out
the others."""
_FLOAT32 = 8  # bytes of float32 that a packed byte is decoded to
_SAMPLES = 16  # bytes by which operands are told apart before they are compared


def keeps(packed: Tensor) -> bool:
    """Return whether a packed operand is small enough to be kept decoded."""
    return packed.numel() * _FLOAT32 <= LIMIT // 4


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
        import torch

        if not keeps(packed):
            return decode()
        key = (*_some_bytes(packed), *_some_bytes(scales), packed.shape, scales.shape, str(packed.device))
        kept = self._kept.get(key)
        if kept is not None and torch.equal(kept[0], packed) and torch.equal(kept[1], scales):
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


def _some_bytes(tensor: Tensor) -> list[int]:
    """Return a few bytes of a tensor, from all over it."""
    flat = tensor.flatten()
    found: list[int] = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].tolist()
    return found

"""The 128 bytes of a tensor map, as the compiled host code of CuTe DSL writes them: only the first 64 mean anything.

Only fields that were seen and understood are decoded; every other bit must have the value that it always had, else the map
is refused. How the layout was confirmed: docs/cutedsl-cpu.md, "Tensor maps".
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

from harness.interpreter.errors import UnsupportedPtxError

# element code -> bits of an element
ELEMENT_BITS = {0: 8, 1: 16, 6: 16, 7: 32, 10: 16, 11: 4}
SWIZZLE_BYTES = (0, 32, 64, 128)
# bit 1: always set, meaning unknown; bit 18: L2 promotion; bit 21: set for tensors of 128 KiB and more (CUTLASS,
# copy_traits_sm90_tma.hpp, clears it for smaller ones). None moves data.
_CONSTANT_BITS = 0x2 | 1 << 18 | 1 << 21
_RANK, _ELEMENT, _SWIZZLE, _ATOM = 0x7 << 4, 0xF << 7, 0x3 << 13, 1 << 19


@dataclass(frozen=True)
class TensorMap:
    """A decoded tensor map; index 0 is the innermost dimension.

    Attributes:
        address: of the first element.
        bits: of an element.
        extents: elements of each dimension.
        strides: bytes between neighbours of each dimension but the innermost.
        box: elements that one copy moves in each dimension.
        swizzle: width of the swizzled row in bytes: 0, 32, 64 or 128.
        atom: bytes that a swizzle keeps together: 16, or 32.
    """

    address: int
    bits: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int
    atom: int = 16

    @property
    def box_bytes(self) -> int:
        """Bytes that one copy moves into shared memory, out-of-bounds elements included."""
        elements = 1
        for extent in self.box:
            elements *= extent
        return elements * self.bits // 8


@functools.lru_cache(maxsize=1024)
def decode_tensor_map(block: bytes) -> TensorMap:
    """Return the meaning of a tensor map; a kernel asks again at every copy.

    Raises:
        UnsupportedPtxError: a bit is set that no map seen so far had.
    """
    words = struct.unpack("<32I", block)
    control = words[2]
    unknown = control & ~(_CONSTANT_BITS | _RANK | _ELEMENT | _SWIZZLE | _ATOM)
    if unknown or control & 0x2 == 0:
        raise UnsupportedPtxError(
            f"tensor map: word 2 is {control:#x}, of which the bits {unknown:#x} are not known"
        )
    rank = (control >> 4 & 7) + 1
    element = control >> 7 & 0xF
    if element not in ELEMENT_BITS:
        raise UnsupportedPtxError(
            f"tensor map: element code {element} is not known; known: {sorted(ELEMENT_BITS)}"
        )
    strides = tuple(words[3 + d] << 4 for d in range(rank - 1))
    if any(words[3 + d] for d in range(rank - 1, 4)):
        raise UnsupportedPtxError(f"tensor map of rank {rank}: words 3 to 6 hold more strides than that")
    if words[7] & 0xFFFF_FFFF:
        raise UnsupportedPtxError(f"tensor map: word 7 is {words[7]:#x}, only 0 is known")
    extents = tuple(words[8 + d] + 1 for d in range(rank))
    box = tuple(block[55 + d] + 1 for d in range(rank))
    if (
        any(words[8 + d] for d in range(rank, 5))
        or any(block[55 + d] for d in range(rank, 5))
        or any(block[52:55])
    ):
        raise UnsupportedPtxError(f"tensor map of rank {rank}: fields of higher dimensions are not zero")
    if any(block[60:64]):
        raise UnsupportedPtxError(f"tensor map: bytes 60 to 63 are {block[60:64].hex()}, only 0 is known")
    bits = ELEMENT_BITS[element]
    if box[0] * bits % 128:
        raise UnsupportedPtxError(
            f"tensor map: inner box of {box[0]} elements of {bits} bits is no multiple of 16 bytes"
        )
    swizzle, atom = SWIZZLE_BYTES[control >> 13 & 3], 32 if control & _ATOM else 16
    if atom == 32 and swizzle != 128:
        raise UnsupportedPtxError(f"tensor map: a swizzle of {swizzle} bytes in atoms of 32 is not modelled")
    return TensorMap(words[0] | words[1] << 32, bits, extents, strides, box, swizzle, atom)

"""Shared-memory and instruction descriptors of tcgen05.mma (CUTLASS cute/arch/mma_sm100_desc.hpp; PTX ISA 9.7.16.4)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from harness.interpreter.errors import MemoryFaultError, UnsupportedPtxError
from harness.interpreter.lanes import Array
from harness.interpreter.memory import SharedMemory
from harness.interpreter.tma import swizzled

# layout type in bits 61 to 63 -> swizzle width in bytes
_LAYOUT = {0: 0, 2: 128, 4: 64, 6: 32}
_VERSION_BITS = 1 << 46  # Blackwell's descriptors say version 1


@dataclass(frozen=True)
class SharedDescriptor:
    """A matrix in shared memory, K-major: where it starts, how far 8-row groups are apart, how rows are swizzled.

    Attributes:
        start: byte offset of the first element, bits 0 to 13 in units of 16.
        group_stride: bytes between groups of 8 rows.
        swizzle: 0, 32, 64 or 128 bytes.
    """

    start: int
    group_stride: int
    swizzle: int


def decode_shared_descriptor(bits: int) -> SharedDescriptor:
    """Return the meaning of a 64-bit shared-memory descriptor.

    Raises:
        UnsupportedPtxError: a field has a value that is not modelled.
    """
    layout = bits >> 61 & 7
    if layout not in _LAYOUT:
        raise UnsupportedPtxError(f"shared-memory descriptor {bits:#x}: layout type {layout} is not modelled")
    known = 0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | _VERSION_BITS | 7 << 61
    if bits & ~known or not bits & _VERSION_BITS:
        raise UnsupportedPtxError(
            f"shared-memory descriptor {bits:#x}: bits {bits & ~known:#x} are not modelled (version must be 1)"
        )
    # The leading-dimension offset (bits 16 to 29) is not used by swizzled K-major operands whose row fits the swizzle.
    return SharedDescriptor((bits & 0x3FFF) << 4, (bits >> 32 & 0x3FFF) << 4, _LAYOUT[layout])


@functools.lru_cache(maxsize=4096)
def _row_chunks(start: int, group_stride: int, swizzle: int, rows: int, size: int) -> Array:
    row = np.arange(rows)[:, None]
    pitch = swizzle or 16
    within = np.arange(size // 16)[None, :]
    at = start // 16 + row // 8 * (group_stride // 16) + row % 8 * (pitch // 16) + within
    return swizzled(at, swizzle)


def read_rows(shared: SharedMemory, descriptor: SharedDescriptor, rows: int, size: int) -> Array:
    """Return `size` bytes of each row, `(rows, size)` uint8, through the asynchronous proxy.

    Raises:
        UnsupportedPtxError: the bytes of a row do not fit its swizzle atom, so that the leading-dimension offset counts.
    """
    start, pitch = descriptor.start, descriptor.swizzle or 16
    if start % pitch + size > pitch and descriptor.swizzle:
        raise UnsupportedPtxError(
            f"operand rows of {size} bytes at {start:#x} leave their {pitch}-byte swizzle atom"
        )
    if size > 16 and not descriptor.swizzle:
        raise UnsupportedPtxError(
            f"operand rows of {size} bytes without swizzle need the leading-dimension offset"
        )
    if descriptor.swizzle and (start // 128) % 8 and descriptor.swizzle == 128:
        raise MemoryFaultError(f"operand at {start:#x} is not on an 8-row boundary and the base offset is 0")
    chunks = _row_chunks(start, descriptor.group_stride, descriptor.swizzle, rows, size)
    shared.check(int(chunks.min()) * 16, int(chunks.max()) * 16 + 16)
    return shared.chunks[chunks].view(np.uint8).reshape(rows, size)


@dataclass(frozen=True)
class InstructionDescriptor:
    """The 32-bit descriptor of a block-scaled tcgen05.mma.

    Attributes:
        a_format: code of A's elements, 1 for E2M1 in the 4-bit kinds; 0 E4M3, 1 E5M2, 5 E2M1 in mxf8f6f4.
        b_format: the same of B.
        negate_a: A enters negated.
        negate_b: B enters negated.
        n: columns of the result.
        m: rows of the result, over both CTAs of a pair.
        scale_e8m0: scales are UE8M0, else UE4M3.
        a_scale_byte: first byte of A's scale word that is used.
        b_scale_byte: the same of B.
    """

    a_format: int
    b_format: int
    negate_a: bool
    negate_b: bool
    n: int
    m: int
    scale_e8m0: bool
    a_scale_byte: int
    b_scale_byte: int


def decode_instruction_descriptor(bits: int) -> InstructionDescriptor:
    """Return the meaning of an instruction descriptor.

    Raises:
        UnsupportedPtxError: sparsity, a transposed operand or the long k of 4-bit kinds is asked for, or an unknown bit.
    """
    names = {0x3: "sparsity selector", 0x4: "sparsity", 0x8: "bit 3", 0x40: "bit 6", 1 << 15: "transposed A",
             1 << 16: "transposed B", 1 << 31: "k size"}  # fmt: skip
    for mask, name in names.items():
        if bits & mask:
            raise UnsupportedPtxError(f"instruction descriptor {bits:#x}: {name} is not modelled")
    return InstructionDescriptor(
        a_format=bits >> 7 & 7,
        b_format=bits >> 10 & 7,
        negate_a=bool(bits >> 13 & 1),
        negate_b=bool(bits >> 14 & 1),
        n=(bits >> 17 & 0x3F) * 8,
        m=(bits >> 24 & 0x1F) * 16,
        scale_e8m0=bool(bits >> 23 & 1),
        a_scale_byte=bits >> 29 & 3,
        b_scale_byte=bits >> 4 & 3,
    )

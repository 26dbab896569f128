"""Registers, stack and static shared memory out of a cubin: an ELF file with one `.nv.info` record per attribute.

The record layout and the attribute numbers are those that `cuobjdump -elf` prints; see EIATTR_* there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_REGCOUNT, _FRAME_SIZE = 0x2F, 0x11
# Records of this format are followed by their data, the others hold their value in place.
_SIZED = 4
# The first bytes of every block's shared memory belong to the system since compute capability 8.0; a cubin counts them in
# the section of each kernel that uses any, though ptxas reports no static shared memory and a launch does not either.
SYSTEM_SHARED = 1024


class CubinError(Exception):
    """Not a 64-bit little-endian ELF file, or one that ends too early."""


@dataclass(frozen=True)
class Usage:
    """What the kernels of a cubin need, the largest of each.

    Attributes:
        registers: per thread.
        stack_bytes: local memory per thread: spills, and arrays that are indexed at run time.
        shared_bytes: static shared memory per block, without what the system keeps for itself.
        code_bytes: machine code, all kernels.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    code_bytes: int


def read_cubin(data: bytes) -> Usage:
    """Read a cubin.

    Raises:
        CubinError: it is none, or it is cut short.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise CubinError(f"expected a 64-bit little-endian ELF file, got {data[:6]!r}")
    try:
        return _read(data)
    except (struct.error, ValueError, IndexError) as error:
        raise CubinError(f"the ELF file of {len(data)} bytes is cut short or damaged: {error}") from error


def _read(data: bytes) -> Usage:
    (table,) = struct.unpack_from("<Q", data, 0x28)
    count, names_at = struct.unpack_from("<HH", data, 0x3C)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
    names = sections[names_at][4]
    registers = stack = shared = code = 0
    for section in sections:
        start = names + section[0]
        name = data[start : data.index(b"\0", start)].decode()
        offset, size = section[4], section[5]
        if name == ".nv.info":
            for attribute, payload in _records(data[offset : offset + size]):
                if attribute in {_REGCOUNT, _FRAME_SIZE}:
                    _symbol, value = struct.unpack("<II", payload)
                    registers = max(registers, value if attribute == _REGCOUNT else 0)
                    stack = max(stack, value if attribute == _FRAME_SIZE else 0)
        elif name.startswith(".text."):
            code += size
        elif name.startswith(".nv.shared.") and not name.startswith(".nv.shared.reserved"):
            shared = max(shared, size - SYSTEM_SHARED)
    return Usage(registers, stack, shared, code)


def _records(data: bytes) -> list[tuple[int, bytes]]:
    """Return (attribute, data) of every record."""
    found = []
    at = 0
    while at + 4 <= len(data):
        form, attribute, value = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == _SIZED:
            if at + value > len(data):
                raise ValueError(f"record {attribute:#x} at {at} is longer than its section")
            found.append((attribute, data[at : at + value]))
            at += value
        else:
            found.append((attribute, struct.pack("<H", value)))
    return found

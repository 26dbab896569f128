"""Global and shared memory: bounds-checked, poisoned, and shared memory seen through two proxies.

Generic stores (st.shared) reach the asynchronous units (TMA, tensor core) only after a fence.proxy.async, so shared memory
is kept twice: as threads see it and as those units see it.
"""

from __future__ import annotations

import bisect
import ctypes

import numpy as np

from harness.interpreter.errors import MemoryFaultError
from harness.interpreter.lanes import Array, Lanes, lanes

SHARED_BASE = 1024  # where the dynamic shared memory starts; below lies what the system reserves
RANK_SHIFT = 24  # the CTA's rank in its cluster, in a shared::cluster address
SHARED_OFFSET = (1 << RANK_SHIFT) - 1  # the rest of it: the offset in that CTA's shared memory
SHARED_WINDOW = 1 << 56  # generic addresses of shared memory
POISON_BYTE = 0xFF


class Buffer:
    """One known range of global memory.

    Args:
        start: address of its first byte.
        size: bytes.
        name: for messages.
        writable: whether a kernel may write it.
    """

    def __init__(self, start: int, size: int, name: str, *, writable: bool = True) -> None:
        self.start, self.size, self.name, self.writable = start, size, name, writable
        self.base = start & ~15
        length = (start + size - self.base + 15) & ~15
        # bytes before and behind the range are mapped with it, and guarded by the bounds check
        self.bytes: Array = np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(self.base))
        self.words: Array = self.bytes.view(np.uint32)

    @property
    def end(self) -> int:
        """Address past the last byte."""
        return self.start + self.size


class GlobalMemory:
    """The buffers that a launch may touch; an access to anything else is a fault that names the nearest buffer."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._starts: list[int] = []
        self._keep: list[object] = []

    def add(self, start: int, size: int, name: str, *, writable: bool = True) -> None:
        """Make a range known; zero bytes are none."""
        if size <= 0:
            return
        at = bisect.bisect(self._starts, start)
        self._starts.insert(at, start)
        self._buffers.insert(at, Buffer(start, size, name, writable=writable))

    def add_array(self, array: Array, name: str, *, writable: bool = True) -> int:
        """Make a NumPy array known and keep it alive; return its address."""
        self._keep.append(array)
        self.add(array.ctypes.data, array.nbytes, name, writable=writable)
        return int(array.ctypes.data)

    def find(self, address: int, size: int, *, write: bool = False) -> Buffer:
        """Return the buffer that holds `[address, address + size)`.

        Raises:
            MemoryFaultError: no buffer does, or it may not be written.
        """
        at = bisect.bisect(self._starts, address) - 1
        # ranges may overlap where a caller passes the same tensor twice: look a few further back
        for buffer in self._buffers[max(at - 3, 0) : at + 1][::-1]:
            if address >= buffer.start and address + size <= buffer.end and (buffer.writable or not write):
                return buffer
        verb = "write" if write else "read"
        near = self._buffers[max(at, 0)] if self._buffers else None
        where = "no buffer is known"
        if near is not None:
            kind = "" if near.writable else ", an input"
            where = f"nearest is {near.name}, {near.size} bytes{kind}, at offset {address - near.start}"
        raise MemoryFaultError(
            f"{verb} of {size} bytes at {address:#x} is outside every known buffer ({where})"
        )

    def load(self, address: Lanes, size: int, mask: Array | None) -> Lanes:
        """Return 1, 2, 4 or 8 bytes per lane as bits."""
        if isinstance(address, int):
            buffer = self.find(address, size)
            at = address - buffer.base
            return int.from_bytes(buffer.bytes[at : at + size].tobytes(), "little")
        offsets, buffer = self._lane_offsets(address, size, mask, write=False)
        return gather(buffer.bytes, offsets, size)

    def store(self, address: Lanes, value: Lanes, size: int, mask: Array | None) -> None:
        """Write 1, 2, 4 or 8 bytes per active lane; of lanes that write one place the last wins."""
        if isinstance(address, int):
            buffer = self.find(address, size, write=True)
            at = address - buffer.base
            if not isinstance(value, int):
                value = int(value[-1] if mask is None else value[mask][-1])
            buffer.bytes[at : at + size] = np.frombuffer(
                int(value).to_bytes(8, "little")[:size], dtype=np.uint8
            )
            return
        offsets, buffer = self._lane_offsets(address, size, mask, write=True)
        scatter(buffer.bytes, offsets, value, size, mask)

    def _lane_offsets(
        self, address: Array, size: int, mask: Array | None, *, write: bool
    ) -> tuple[Array, Buffer]:
        active = address if mask is None else address[mask]
        low, high = int(active.min()), int(active.max())
        buffer = self.find(low, high - low + size, write=write)
        if low % size or (active % np.uint64(size)).any():
            raise MemoryFaultError(f"access of {size} bytes at {low:#x} is not aligned to its size")
        offsets = address.astype(np.int64) - buffer.base
        if mask is not None:
            offsets = np.where(mask, offsets, low - buffer.base)
        return offsets, buffer


def gather(memory: Array, at: Array, size: int) -> Array:
    """Return bytes at aligned offsets as one value per lane."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[size]
    found = memory.view(kind)[at // size]
    wide: Array = found.astype(np.uint64 if size == 8 else np.uint32)
    return wide


def scatter(memory: Array, at: Array, value: Lanes, size: int, mask: Array | None) -> None:
    """Write one value per active lane at aligned offsets."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[size]
    values = lanes(value, np.uint64 if size == 8 else np.uint32).astype(kind)
    where = at // size
    if mask is not None:
        where, values = where[mask], values[mask]
    memory.view(kind)[where] = values


class SharedMemory:
    """Shared memory of one CTA, addressed by the offset part of a shared address.

    Attributes:
        generic: as ld.shared and st.shared see it.
        proxy: as TMA and the tensor core see it.
        limit: first offset past what the launch asked for.
    """

    def __init__(self, size: int) -> None:
        self.limit = SHARED_BASE + size
        length = -(-self.limit // 1024) * 1024
        self.generic: Array = np.full(length, POISON_BYTE, dtype=np.uint8)
        self.proxy: Array = np.full(length, POISON_BYTE, dtype=np.uint8)
        self.chunks: Array = self.proxy.view(np.uint64).reshape(-1, 2)  # 16 bytes each, what swizzles move

    def check(self, low: int, high: int) -> None:
        """Refuse a range outside what the launch asked for."""
        if low < SHARED_BASE or high > self.limit:
            raise MemoryFaultError(
                f"shared memory [{low:#x}, {high:#x}) is outside the launch's {self.limit - SHARED_BASE} bytes "
                f"at {SHARED_BASE:#x}"
            )

    def load(self, offset: Lanes, size: int, mask: Array | None) -> Lanes:
        """Return 1, 2, 4 or 8 bytes per lane as bits, generic proxy."""
        if isinstance(offset, int):
            self.check(offset, offset + size)
            return int.from_bytes(self.generic[offset : offset + size].tobytes(), "little")
        return gather(self.generic, self._offsets(offset, size, mask), size)

    def store(self, offset: Lanes, value: Lanes, size: int, mask: Array | None) -> Array:
        """Write per active lane, generic proxy; return the offsets written, for the fence that publishes them."""
        at = self._offsets(lanes(offset, np.uint32), size, mask)
        scatter(self.generic, at, value, size, mask)
        return at if mask is None else at[mask]

    def store_vector(self, offset: Lanes, values: list[Lanes], mask: Array | None) -> Array:
        """Write 32-bit values side by side per active lane; return the offsets of the 32-bit words written."""
        size = 4 * len(values)
        at = self._offsets(lanes(offset, np.uint32), size, mask)
        where = (at // 4)[:, None] + np.arange(len(values))
        data = np.stack([lanes(v, np.uint32) for v in values], axis=1)
        if mask is not None:
            where, data = where[mask], data[mask]
        self.generic.view(np.uint32)[where] = data
        return (where * 4).reshape(-1)

    def publish(self, offsets: Array, size: int) -> None:
        """Let the asynchronous units see generic stores: fence.proxy.async."""
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[size]
        at = offsets // size
        self.proxy.view(kind)[at] = self.generic.view(kind)[at]

    def _offsets(self, offset: Lanes, size: int, mask: Array | None) -> Array:
        at: Array = (offset & np.uint32(SHARED_OFFSET)).astype(np.int64)
        active = at if mask is None else at[mask]
        low, high = int(active.min()), int(active.max())
        self.check(low, high + size)
        if (active % size).any():
            raise MemoryFaultError(f"shared access of {size} bytes at {low:#x} is not aligned to its size")
        return at if mask is None else np.where(mask, at, low)

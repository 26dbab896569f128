"""The tensor memory accelerator: copies boxes between global and shared memory, with swizzles, bounds and zero fill.

Source: PTX ISA 9.7.9.27 (cp.async.bulk.tensor) and 5.5 (tensors): tiled mode only.
"""

from __future__ import annotations

import functools

import numpy as np

from harness.interpreter.errors import MemoryFaultError, UnsupportedPtxError
from harness.interpreter.lanes import Array
from harness.interpreter.memory import GlobalMemory, SharedMemory
from harness.interpreter.tensor_map import TensorMap


def swizzled(chunk: Array, width: int, atom: int = 16) -> Array:
    """Return 16-byte chunk numbers of shared memory after a swizzle: address bits 4.. are XORed with bits 7.. .

    Args:
        chunk: addresses in units of 16 bytes.
        width: 0, 32, 64 or 128 bytes: 0, 1, 2 or 3 bits.
        atom: bytes kept together: with 32, address bits 5 and 6 are XORed with bits 7 and 8.
    """
    bits = {0: 0, 32: 1, 64: 3, 128: 7}[width]
    moved: Array = chunk ^ (chunk >> 2 & 6) if atom == 32 else chunk ^ (chunk >> 3 & bits)
    return moved


@functools.lru_cache(maxsize=4096)
def _chunks(offset: int, count: int, width: int, atom: int) -> Array:
    return swizzled(np.arange(offset // 16, (offset + count) // 16), width, atom)


def _check(tensor: TensorMap, offset: int) -> None:
    inner = tensor.box[0] * tensor.bits // 8
    if tensor.swizzle and inner > tensor.swizzle:
        raise UnsupportedPtxError(
            f"TMA: inner box of {inner} bytes is wider than its {tensor.swizzle}-byte swizzle"
        )
    if offset % 128:
        raise MemoryFaultError(f"TMA: shared address {offset:#x} is not a multiple of 128 bytes")


def _region(tensor: TensorMap, at: tuple[int, ...]) -> tuple[list[slice], list[int], list[int]] | None:
    """Return the part of the box inside the tensor: slices of the box, first coordinate and count of each dimension."""
    slices, first, count = [], [], []
    for start, size, extent in zip(at, tensor.box, tensor.extents, strict=True):
        low, high = max(start, 0), min(start + size, extent)
        if low >= high:
            return None
        slices.append(slice(low - start, high - start))
        first.append(low)
        count.append(high - low)
    return slices, first, count


def _global_view(
    tensor: TensorMap, memory: GlobalMemory, first: list[int], count: list[int], *, write: bool
) -> Array:
    """Return the bytes of a part of the tensor, outermost dimension first, as a view of the buffer."""
    if first[0] * tensor.bits % 8 or count[0] * tensor.bits % 8:
        raise UnsupportedPtxError(
            f"TMA: inner coordinate {first[0]} of {tensor.bits}-bit elements is not on a byte"
        )
    inner = count[0] * tensor.bits // 8
    address = tensor.address + first[0] * tensor.bits // 8
    span = inner
    for coordinate, extent, stride in zip(first[1:], count[1:], tensor.strides, strict=True):
        address += coordinate * stride
        span += (extent - 1) * stride
    buffer = memory.find(address, span, write=write)
    at = address - buffer.base
    shape = (*count[:0:-1], inner)
    strides = (*tensor.strides[::-1], 1)
    return np.lib.stride_tricks.as_strided(buffer.bytes[at : at + span], shape, strides)


def load_box(tensor: TensorMap, memory: GlobalMemory, at: tuple[int, ...]) -> Array:
    """Return a box as the bytes that go to shared memory, not swizzled; outside the tensor zeros.

    Args:
        tensor: the tensor map.
        memory: global memory.
        at: coordinates of the box, innermost first; may be negative or past the end.
    """
    inner = tensor.box[0] * tensor.bits // 8
    region = _region(tensor, at)
    shape = (*tensor.box[:0:-1], inner)
    if region is None:
        return np.zeros(shape, dtype=np.uint8)
    slices, first, count = region
    source = _global_view(tensor, memory, first, count, write=False)
    if tuple(count) == tensor.box:
        return source
    box = np.zeros(shape, dtype=np.uint8)
    bytes_of = slice(slices[0].start * tensor.bits // 8, slices[0].stop * tensor.bits // 8)
    box[(*slices[:0:-1], bytes_of)] = source
    return box


def write_shared(box: Array, tensor: TensorMap, shared: SharedMemory, offset: int) -> None:
    """Put a box into shared memory, swizzled; both proxies see it, because a thread waits on the mbarrier first."""
    _check(tensor, offset)
    shared.check(offset, offset + box.size)
    data = np.ascontiguousarray(box).reshape(-1).view(np.uint64).reshape(-1, 2)
    if tensor.swizzle and tensor.swizzle != box.shape[-1]:
        raise UnsupportedPtxError(
            f"TMA: inner box of {box.shape[-1]} bytes with a {tensor.swizzle}-byte swizzle"
        )
    where = _chunks(offset, box.size, tensor.swizzle, tensor.atom)
    shared.chunks[where] = data
    shared.generic.view(np.uint64).reshape(-1, 2)[where] = data


def read_shared(tensor: TensorMap, shared: SharedMemory, offset: int) -> Array:
    """Return the box that lies in shared memory at an offset, swizzle undone; shape as `load_box`."""
    _check(tensor, offset)
    size = tensor.box_bytes
    shared.check(offset, offset + size)
    data = shared.chunks[_chunks(offset, size, tensor.swizzle, tensor.atom)]
    return data.view(np.uint8).reshape(*tensor.box[:0:-1], tensor.box[0] * tensor.bits // 8)


def store_box(box: Array, tensor: TensorMap, memory: GlobalMemory, at: tuple[int, ...]) -> None:
    """Write the part of a box that lies inside the tensor to global memory."""
    region = _region(tensor, at)
    if region is None:
        return
    slices, first, count = region
    target = _global_view(tensor, memory, first, count, write=True)
    bytes_of = slice(slices[0].start * tensor.bits // 8, slices[0].stop * tensor.bits // 8)
    target[...] = box[(*slices[:0:-1], bytes_of)]

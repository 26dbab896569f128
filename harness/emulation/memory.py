"""What kernels do to memory: raw pointers in a canonical layout, whatever strides the caller's tensor has."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def raw(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the memory behind a tensor's data pointer, read as contiguous `shape`.

    This is what a kernel sees that takes a pointer and computes its own strides: a tensor in another layout is silently
    misread.

    Raises:
        IndexError: the memory behind the pointer is shorter than that. A GPU would read or fault beyond it.
    """
    available = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    if math.prod(shape) > available:
        raise IndexError(
            f"raw: {shape} needs {math.prod(shape)} elements behind the pointer, {available} are there"
        )
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return torch.as_strided(tensor, shape, strides)


def unwritten(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
    """Return a buffer as an allocator may hand it out: NaN patterns, which no kernel has written."""
    size = torch.empty((), dtype=dtype).element_size()
    fill = {torch.uint8: 0xFF, torch.float8_e4m3fn: 0x7F}.get(dtype)
    if fill is None:
        return torch.full(shape, torch.nan, dtype=dtype, device=device)
    return torch.full((*shape[:-1], shape[-1] * size), fill, dtype=torch.uint8, device=device).view(dtype)

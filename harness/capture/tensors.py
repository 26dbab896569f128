"""Tensors as they lie in memory: shape, strides, and the bytes from the first to the last element, padding between included."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """A tensor that is in a file already.

    Attributes:
        entry: of the index.
    """

    entry: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """A tensor's memory on the CPU.

    Attributes:
        memory: `(elements,)` of its dtype, from its first element to its last.
        shape, stride: of the tensor, in elements; strides may be 0, never negative.
        key: of the same tensor in later calls (address, shape, version), to know weights again.
    """

    memory: Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    key: tuple[Any, ...]

    def tensor(self) -> Tensor:
        """Return the tensor."""
        return torch.as_strided(self.memory, self.shape, self.stride)


def stored(tensor: Tensor) -> Stored:
    """Copy a tensor to the CPU."""
    tensor = tensor.detach()
    version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - inference tensors have none
    key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), str(tensor.dtype), version)
    if tensor.numel() == 0:
        return Stored(torch.empty(0, dtype=tensor.dtype), tuple(tensor.shape), tensor.stride(), key)
    size = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    memory = torch.as_strided(tensor, (size,), (1,)).to("cpu", copy=True)
    return Stored(memory, tuple(tensor.shape), tuple(tensor.stride()), key)


def copied(values: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments with every tensor stored; those of a tuple too. Other values must be plain, or are named."""
    return {name: _copied(value) for name, value in values.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return stored(value)
    if isinstance(value, Kept):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_copied(one) for one in value)
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else f"<{type(value).__module__}.{type(value).__name__}>"


def changes(before: dict[str, Any], after: dict[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """Return the tensors among a call's inputs whose bytes are not what they were, as they are now.

    Args:
        before: copies from before the call.
        after: the inputs themselves, after it.
        left_out: names that are not looked at: outputs, and weights, which are too large to be copied every time.
    """
    found = {}
    for name, value in after.items():
        if name in left_out or not isinstance(value, Tensor):
            continue
        now = stored(value)
        if not torch.equal(_bytes(now.memory), _bytes(before[name].memory)):
            found[name] = now
    return found


def _bytes(memory: Tensor) -> Tensor:
    return memory.view(-1).view(torch.uint8)

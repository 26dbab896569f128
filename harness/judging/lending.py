"""A candidate whose stages get copies of their inputs, so that nothing is judged against a tensor that it could have written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import ALL_STAGES

ALIGNMENT = 64
"""Bytes. What an address leaves over when it is divided by this is the same in a copy."""
_STAGES = frozenset({*ALL_STAGES, "masked_moe_tapped", "routed_moe_tapped"})
_OUT = 4  # which argument of masked_grouped_gemm is its output


class Lent:
    """A candidate; each call of a stage gets copies. The output of masked_grouped_gemm is the caller's own.

    Args:
        candidate: the object with the stages. Everything else of it passes through.
    """

    def __init__(self, candidate: Any) -> None:
        self._candidate = candidate

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._candidate, name)
        return _lending(name, value) if name in _STAGES and callable(value) else value


def _lending(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    gemm = stage == "masked_grouped_gemm"

    @functools.wraps(function, updated=())
    def call(*arguments: Any, **named: Any) -> Any:
        given = [v if gemm and place == _OUT else copied(v) for place, v in enumerate(arguments)]
        return function(*given, **{n: v if gemm and n == "out" else copied(v) for n, v in named.items()})

    return call


def copied(value: Any) -> Any:
    """Return a copy of a stage's argument: its tensors, in lists, tuples, mappings and dataclasses too; the rest as it is."""
    if isinstance(value, Tensor):
        return copied_tensor(value)
    if isinstance(value, (list, tuple)):
        return type(value)(copied(part) for part in value)
    if isinstance(value, Mapping):
        return {name: copied(part) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: copied(getattr(value, f.name)) for f in fields(value)})
    return value


def copied_tensor(tensor: Tensor) -> Tensor:
    """Return a copy with the same strides and alignment, and with the same bytes between its elements."""
    copy = tensor.clone()
    address, size = tensor.data_ptr(), tensor.element_size()
    same_place = (address - copy.data_ptr()) % ALIGNMENT == 0
    if not tensor.numel() or (copy.stride() == tensor.stride() and same_place):
        return copy
    span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    # As far as a stage would read that ignores the strides, so that it reads the same each time.
    there = tensor.untyped_storage().nbytes() // size - tensor.storage_offset()
    span = int(min(max(span, tensor.numel()), there))
    memory = torch.zeros(span + ALIGNMENT // size, dtype=tensor.dtype, device=tensor.device)
    lead = (address - memory.data_ptr()) % ALIGNMENT // size
    memory[lead : lead + span] = torch.as_strided(tensor, (span,), (1,))
    return torch.as_strided(memory, tensor.shape, tensor.stride(), lead)

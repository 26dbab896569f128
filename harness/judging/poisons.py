"""NaN, or the largest number, in an operand of any format: where its scales are, or its elements where it has none; and in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from harness.judging.comparison import Comparison
from reference.e4m3 import NAN_BYTE
from reference.formats import Coded, Format


def poisoned(form: Format, coded: Coded, where: Tensor, *, finite: bool = False) -> tuple[Coded, str]:
    """Return an operand with NaN in some rows, and what was done, in words with a place for whose it is.

    Args:
        form: its format.
        coded: `(l, m, k)`.
        where: bool, broadcastable to `(l, m, 1)`.
        finite: the largest number instead.
    """
    largest = torch.finfo(torch.float32).max
    if form.swizzled:
        byte = form.largest_scale if finite else form.nan_scale
        largest = float(form.scales(torch.tensor(byte, dtype=torch.uint8)))
        changed = replace(coded, block_scale=coded.block_scale.masked_fill(where, byte))
        return changed, f"the scales of {{}} are {f'{largest:.6g}' if finite else 'NaN'}"
    value = largest if finite else torch.nan
    if coded.row_scale is not None:
        changed = replace(coded, row_scale=coded.row_scale.masked_fill(where, value))
    elif form.scale:
        changed = replace(coded, block_scale=coded.block_scale.masked_fill(where, value))
    else:
        largest = torch.finfo(form.dtype).max if form.plain else form.largest
        of_bytes = 0x7E if finite else 0x7F  # of E4M3
        element = (largest if finite else torch.nan) if form.plain else of_bytes
        changed = replace(coded, codes=coded.codes.masked_fill(where, element))
        return changed, f"the elements of {{}} are {f'{largest:.6g}' if finite else 'NaN'}"
    return changed, f"the scales of {{}} are {f'{largest:.6g}' if finite else 'NaN'}"


@contextmanager
def poisoned_allocations(device: str) -> Iterator[None]:
    """Make every `torch.empty` of the block hold NaN (0xFF in bytes), so that what no kernel writes shows.

    Uses torch.utils.deterministic.fill_uninitialized_memory, which C++ allocations honour as well.
    """
    was = torch.get_deterministic_debug_mode()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms loads a compiler, for a second
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
        if device == "cuda":
            torch.cuda.synchronize()
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_deterministic_debug_mode(was)


def named_unwritten(found: list[Comparison], got: Tensor) -> list[Comparison]:
    """Say so where what differs is just the poison: the output was never written."""
    floating = got.dtype.is_floating_point
    poison = got.isnan() if floating else (got == 0xFF) | (got == 0xF) | (got == NAN_BYTE)
    if len(got) and bool(poison.all()):
        for result in found:
            if result.illegal:
                result.message = (
                    f"{result.stage}: output never written: it still holds the poison\n{result.message}"
                )
    return found

"""NaN, or the largest number, in an operand of any format: where its scales are, or its elements where it has none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

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

"""The sums of every stretch of k of a few dot products, which tells at once where a kernel cut k: `segments`."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.matrix_units import additions
from reference.matrix_units.step import Operand, add_exactly, add_products
from reference.matrix_units.unit import MatrixUnit


def segments(unit: MatrixUnit, a: Operand, b: Operand, step: int) -> Tensor:
    """Return what the accumulator holds after each stretch of k that begins and ends at a multiple of `step`.

    Args:
        unit: of each instruction; its k is a divisor of `step`, or it adds exactly and rounds to nearest.
        a: `(elements, k)`.
        b: `(elements, k)`.
        step: elements of k.

    Returns:
        `(steps, steps + 1, elements)` float32: [i, j] is the sum from i * step to j * step, or to the end of k; NaN where
        j is not larger than i.
    """
    a, b = a.aligned_for(unit), b.aligned_for(unit)
    values = a.elements.values
    steps = -(-a.k // step)
    table = torch.full((steps, steps + 1, len(values)), torch.nan, device=values.device)
    plain = additions.products(a, b) if additions.suffice(unit, a, b) else None
    products = a.values() * b.values() if unit.adds_exactly else None
    whole = products is not None and unit.k > step
    # Of an exact unit what has been added so far is held in float64, and rounded where a stretch ends.
    dtype = torch.float64 if whole else torch.float32
    total = torch.zeros(steps, len(values), dtype=dtype, device=values.device)
    for i in range(steps):
        open_ = total[: i + 1]
        stop = min((i + 1) * step, a.k)
        if plain is not None:
            for product in plain[i * step : stop]:
                open_ += product
        elif products is not None and whole:
            open_ += products[:, i * step : stop].sum(-1)
        else:
            for at in range(i * step, stop, unit.k):
                end = min(at + unit.k, stop)
                if products is not None:
                    open_ = add_exactly(unit, products[:, at:end], open_)
                else:
                    left, right = a.along_k(at, end).at(None), b.along_k(at, end).at(None)
                    open_ = add_products(unit, left, right, open_)
            total[: i + 1] = open_
        table[: i + 1, i + 1] = open_.float()
    return table

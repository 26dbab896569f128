"""Planting traps into a tensor that is about to be quantized: values that sit where quantizers go wrong.

Each trap is written into whole blocks of 16 in valid rows, relative to the expert's encode scale, so that it stays what
it is called whatever the scale. Where a trap needs exact ties the expert's scale must be a power of two: see
`TIE_TRAPS`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.e2m1 import MIDPOINTS
from reference.nvfp4 import BLOCK

TIE_TRAPS = frozenset({"e2m1_ties", "e4m3_ties"})
BLOCK_TRAPS = (
    "e2m1_ties",
    "e4m3_ties",
    "scale_underflow",
    "scale_saturation",
    "zero_block",
    "subnormal",
    "negative_zero",
    "nan",
    "inf",
)
_PLACES = 4  # blocks that each trap gets in one problem


def plant(
    x: Tensor, masked_m: list[int], scale: Tensor, traps: frozenset[str], generator: torch.Generator
) -> Tensor:
    """Write the block and row traps into `x`, in place.

    Args:
        x: `(experts, capacity, k)` bfloat16.
        masked_m: valid rows of each expert.
        scale: `(experts,)` float32 encode scales.
        traps: names out of PLANTED_TRAPS; others are ignored.
        generator: source of the places and signs.

    Returns:
        `(experts, capacity, k / 16)` bool: blocks that were written.
    """
    experts, capacity, k = x.shape
    planted = torch.zeros(experts, capacity, k // BLOCK, dtype=torch.bool)
    rows = [(e, r) for e, count in enumerate(masked_m) for r in range(count)]
    if not rows:
        return planted
    blocks = x.view(experts, capacity, -1, BLOCK)
    if "zero_expert" in traps:
        expert = rows[_draw(len(rows), generator)][0]
        x[expert] = 0
        planted[expert] = True
    if "zero_row" in traps:
        expert, row = rows[_draw(len(rows), generator)]
        x[expert, row] = 0
        planted[expert, row] = True
    for trap in BLOCK_TRAPS:
        if trap not in traps:
            continue
        for place in range(_PLACES):
            expert, row = rows[_draw(len(rows), generator)]
            block = _draw(k // BLOCK, generator)
            values = _block(trap, place, generator)
            blocks[expert, row, block] = (
                values / scale[expert].double() if trap != "subnormal" else values
            ).bfloat16()
            planted[expert, row, block] = True
    return planted


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _block(trap: str, place: int, generator: torch.Generator) -> Tensor:  # noqa: PLR0911 - one return a trap
    """Return one block of 16 float64 values in units of 1 / global_scale_enc."""
    sign = torch.randint(0, 2, (BLOCK,), generator=generator).double() * 2 - 1
    step = 2.0 ** _draw(6, generator)  # the block scale that ties are measured in
    if trap == "e2m1_ties":
        ties = torch.tensor([6.0, *MIDPOINTS, *MIDPOINTS, 6.0], dtype=torch.float64)
        return ties[torch.randperm(BLOCK, generator=generator)] * sign * step
    if trap == "e4m3_ties":
        # halfway between the E4M3 values (8 + n) / 8 and (9 + n) / 8
        amax = 6 * (17 + 2 * _draw(8, generator)) / 16
        values = torch.rand(BLOCK, generator=generator, dtype=torch.float64) * amax * 0.9
        values[_draw(BLOCK, generator)] = amax
        return values * sign * step
    if trap == "scale_underflow":
        # 2^-10 is the midpoint between scale 0 and the smallest subnormal scale
        amax = 6 * 2.0**-10 * (0.5, 1.0, 1.0078125, 1.5)[place]
        return torch.linspace(0, 1, BLOCK, dtype=torch.float64) * sign * amax
    if trap == "scale_saturation":
        return torch.linspace(0.01, 1, BLOCK, dtype=torch.float64) * sign * 6 * (449, 464, 600, 4480)[place]
    if trap == "zero_block":
        return torch.zeros(BLOCK, dtype=torch.float64)
    if trap == "subnormal":
        return (
            sign * torch.arange(BLOCK) * 2.0**-133
        )  # multiples of the smallest bfloat16 subnormal, unscaled
    if trap == "negative_zero":
        return torch.where(sign > 0, -0.0, torch.linspace(-6, 6, BLOCK, dtype=torch.float64))
    values = torch.randn(BLOCK, generator=generator, dtype=torch.float64) * step
    if trap == "nan":
        if place == 0:
            return torch.full((BLOCK,), torch.nan, dtype=torch.float64)
        values[_draw(BLOCK, generator)] = torch.nan * float(sign[0])
        return values
    values[_draw(BLOCK, generator)] = torch.inf * float(sign[0])
    return values

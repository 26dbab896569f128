"""Planting traps into a tensor that is about to be quantized: values that sit where quantizers go wrong.

Each trap is written into whole blocks of 16 in valid rows, relative to the expert's encode scale, so that it stays what
it is called whatever the scale. Where a trap needs exact ties the expert's scale must be a power of two: see
`TIE_TRAPS`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.problems.problem import BLOCK_TRAPS, BLOCKS_PER_TRAP
from reference.e2m1 import MIDPOINTS
from reference.nvfp4 import BLOCK

TIE_TRAPS = frozenset({"e2m1_ties", "e4m3_ties"})


def plant(
    x: Tensor,
    masked_m: list[int],
    scale: Tensor,
    traps: frozenset[str],
    generator: torch.Generator,
    taken: Tensor | None = None,
) -> Tensor:
    """Write the block and row traps into `x`, in place, each into blocks of its own as long as there are any.

    Args:
        x: `(experts, capacity, k)` bfloat16.
        masked_m: valid rows of each expert.
        scale: `(experts,)` float32 encode scales.
        traps: names out of PLANTED_TRAPS; others are ignored.
        generator: source of the places and signs.
        taken: `(experts, capacity, k / 16)` bool, blocks that hold something planted already.

    Returns:
        `(experts, capacity, k / 16)` bool: blocks that were written, or were taken before.
    """
    experts, capacity, k = x.shape
    planted = torch.zeros(experts, capacity, k // BLOCK, dtype=torch.bool) if taken is None else taken.clone()
    rows = [(e, r) for e, count in enumerate(masked_m) for r in range(count)]
    if not rows:
        return planted
    blocks = x.view(experts, capacity, -1, BLOCK)
    if "zero_expert" in traps:
        zeroed = rows[_draw(len(rows), generator)][0]
        x[zeroed] = 0
        planted[zeroed] = True
        rows = [(e, r) for e, r in rows if e != zeroed]
    if "zero_row" in traps and rows:
        expert, row = rows.pop(_draw(len(rows), generator))
        x[expert, row] = 0
        planted[expert, row] = True
    if "subnormal_scales" in traps and rows:
        expert, row = rows.pop(_draw(len(rows), generator))
        values = torch.stack([_small_block(generator) for _ in range(k // BLOCK)])
        blocks[expert, row] = (values / scale[expert].double()).bfloat16()
        planted[expert, row] = True
    for trap in BLOCK_TRAPS:
        if trap not in traps:
            continue
        for number in range(BLOCKS_PER_TRAP):
            place = _free_place(planted, rows, k // BLOCK, generator)
            if place is None:
                return planted
            values = _block(trap, number, generator)
            blocks[place] = (values / scale[place[0]].double() if trap != "subnormal" else values).bfloat16()
            planted[place] = True
    return planted


def _small_block(generator: torch.Generator) -> Tensor:
    """Return one block whose scale is one of the seven E4M3 subnormals, in units of 1 / global_scale_enc."""
    values = torch.rand(BLOCK, generator=generator, dtype=torch.float64) * 2 - 1
    return values / values.abs().amax() * 6 * (1 + _draw(7, generator)) * 2.0**-9


def _free_place(
    planted: Tensor, rows: list[tuple[int, int]], columns: int, generator: torch.Generator
) -> tuple[int, int, int] | None:
    """Return expert, row and block that nothing is planted in: a drawn one, or the next after it; None if all are."""
    total = len(rows) * columns
    start = _draw(total, generator) if total else 0
    for step in range(total):
        row, column = divmod((start + step) % total, columns)
        if not planted[(*rows[row], column)]:
            return (*rows[row], column)
    return None


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
        # Unscaled. 2^-133 is the smallest bfloat16 subnormal; multiples of 2^-128 can be halved five times.
        return sign * torch.arange(BLOCK) * (2.0**-133, 2.0**-128)[place % 2]
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

"""Writing traps into a tensor that is about to be quantized: values that sit where quantizers go wrong.

Every trap is written into blocks of its own, in valid rows, as long as there are any.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from harness.problems.block_draw import BlockDraw, draw_number
from harness.problems.traps import TRAPS, Block, Place, Trap, find_trap
from reference.nvfp4 import BLOCK


def write_traps(
    x: Tensor,
    masked_m: list[int],
    scale: Tensor,
    names: Iterable[str],
    generator: torch.Generator,
    taken: Tensor | None = None,
) -> Tensor:
    """Write traps into `x`, in place: those of a whole expert first, then those of a row, then those of blocks.

    Args:
        x: `(experts, capacity, k)` bfloat16.
        masked_m: valid rows of each expert.
        scale: `(experts,)` float32 encode scales.
        names: of the traps; those without a block, or for another tensor, are ignored.
        generator: source of the places and values.
        taken: `(experts, capacity, k / 16)` bool, blocks that hold a trap already.

    Returns:
        `(experts, capacity, k / 16)` bool: blocks that were written, or were taken before.

    Raises:
        UsageError: an unknown trap.
    """
    asked = {find_trap(name) for name in names}
    experts, capacity, k = x.shape
    blocks = x.view(experts, capacity, k // BLOCK, BLOCK)
    written = torch.zeros(blocks.shape[:-1], dtype=torch.bool) if taken is None else taken.clone()
    rows = [(e, r) for e, count in enumerate(masked_m) for r in range(count)]
    for trap, block in _filling(asked, "expert"):
        if rows:
            expert, _ = rows[draw_number(len(rows), generator)]
            blocks[expert] = _stored(trap, _row(block, k // BLOCK, generator), scale[expert])
            written[expert] = True
            rows = [(e, r) for e, r in rows if e != expert]
    for trap, block in _filling(asked, "row"):
        if rows:
            expert, row = rows.pop(draw_number(len(rows), generator))
            blocks[expert, row] = _stored(trap, _row(block, k // BLOCK, generator), scale[expert])
            written[expert, row] = True
    for trap, block in _filling(asked, "blocks"):
        for number in range(trap.blocks):
            place = _free_place(written, rows, generator)
            if place is None:
                return written
            draw = BlockDraw(generator)
            _ = draw.sign, draw.step  # whether the block needs them or not: all later draws depend on it
            blocks[place] = _stored(trap, block(draw, number), scale[place[0]])
            written[place] = True
    return written


def write_gates(
    gate_up: Tensor,
    masked_m: list[int],
    scale: Tensor,
    names: Iterable[str],
    generator: torch.Generator,
    taken: Tensor,
) -> None:
    """Write the traps of the activation's input into `gate_up`, in place, as `write_traps` does the others.

    Args:
        gate_up: `(experts, capacity, 2k)` bfloat16.
        masked_m: valid rows of each expert.
        scale: `(experts,)` float32 encode scales of the intermediate.
        names: of the traps.
        generator: source of the places and values.
        taken: `(experts, capacity, k / 16)` bool, blocks that hold a trap already.

    Raises:
        UsageError: an unknown trap.
    """
    experts, capacity, columns = gate_up.shape
    pairs = gate_up.view(experts, capacity, 2, columns // 2 // BLOCK, BLOCK)
    rows = [(e, r) for e, count in enumerate(masked_m) for r in range(count)]
    written = taken.clone()
    for trap, block in _filling({find_trap(name) for name in names}, "blocks", "gate"):
        for number in range(trap.blocks):
            place = _free_place(written, rows, generator)
            if place is None:
                return
            expert, row, column = place
            gate, up = block(BlockDraw(generator), number)
            pairs[expert, row, 0, column] = gate.bfloat16()
            pairs[expert, row, 1, column] = _stored(trap, up, scale[expert])
            written[place] = True


def _filling(asked: set[Trap], where: str, into: Place = "quantized") -> list[tuple[Trap, Block]]:
    """Return the traps with blocks of that extent, in the order of the table."""
    places = ("quantized", "quantizer") if into == "quantized" else (into,)
    return [
        (t, t.block)
        for t in TRAPS.values()
        if t in asked and t.block and t.where == where and t.into in places
    ]


def _row(block: Block, count: int, generator: torch.Generator) -> Tensor:
    """Return the blocks of a row, `(count, 16)` float64."""
    return torch.stack([block(BlockDraw(generator), number) for number in range(count)])


def _stored(trap: Trap, values: Tensor, scale: Tensor) -> Tensor:
    """Return a trap's values as they stand in the tensor, bfloat16, of an expert with that encode scale."""
    stored = (values / scale.double() if trap.scaled else values).bfloat16()
    # Which bits a NaN gets, its sign included, depends on how the processor converts it.
    nan = torch.where(values.signbit(), -0x40, 0x7FC0).to(torch.int16)
    return torch.where(values.isnan(), nan, stored.view(torch.int16)).view(torch.bfloat16)


def _free_place(
    written: Tensor, rows: list[tuple[int, int]], generator: torch.Generator
) -> tuple[int, int, int] | None:
    """Return expert, row and block that nothing is written in: a drawn one, or the next after it; None if all are."""
    columns = written.shape[2]
    total = len(rows) * columns
    start = draw_number(total, generator) if total else 0
    for step in range(total):
        row, column = divmod((start + step) % total, columns)
        if not written[(*rows[row], column)]:
            return (*rows[row], column)
    return None

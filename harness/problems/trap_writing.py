"""Writing traps into a tensor that is about to be quantized: values that sit where quantizers go wrong.

Every trap is written into blocks of its own, in valid rows, as long as there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.problems.block_draw import BlockDraw
from harness.problems.traps import TRAPS, Block, Place, Trap, find_trap
from reference.nvfp4 import BLOCK

if TYPE_CHECKING:
    from harness.problems.draws import Source


def blocks_of(tensor: Tensor) -> Tensor:
    """Return a view of `(experts, capacity, k)`, any strides, as `(experts, capacity, k / 16, 16)`."""
    blocks: Tensor = tensor.unflatten(-1, (-1, BLOCK))  # type: ignore[no-untyped-call]
    return blocks


@dataclass
class Places:
    """Where traps are written already, and where they may be.

    Attributes:
        rows: expert and row of each valid row.
        columns: blocks of a row.
        experts, whole_rows, blocks: what holds a trap.
    """

    rows: list[tuple[int, int]]
    columns: int
    experts: set[int] = field(default_factory=set)
    whole_rows: set[tuple[int, int]] = field(default_factory=set)
    blocks: set[tuple[int, int, int]] = field(default_factory=set)

    @classmethod
    def of(cls, masked_m: Sequence[int], k: int) -> Places:
        """Return those of `(experts, capacity, k)` with these valid rows, nothing being written."""
        return cls([(e, r) for e, count in enumerate(masked_m) for r in range(count)], k // BLOCK)

    def free(self, rows: list[tuple[int, int]], draws: Source) -> tuple[int, int, int] | None:
        """Return expert, row and block that nothing is written in: a drawn one, or the next after it; None if all are."""
        total = len(rows) * self.columns
        start = draws.number(total) if total else 0
        step = 0
        while step < total:
            number, column = divmod((start + step) % total, self.columns)
            row = rows[number]
            if row[0] in self.experts or row in self.whole_rows:
                step += self.columns - column
            elif (*row, column) in self.blocks:
                step += 1
            else:
                return (*row, column)
        return None


class Written:
    """Blocks of traps, as they stand in a tensor: bfloat16, on the host until they are stored."""

    def __init__(self) -> None:
        self._experts: list[tuple[int, Tensor]] = []
        self._places: list[tuple[int, int, int]] = []
        self._values: list[Tensor] = []

    def expert(self, expert: int, row: Tensor) -> None:
        """Add an expert, all of whose rows are this one, `(columns, 16)`."""
        self._experts.append((expert, row))

    def add(self, places: Sequence[tuple[int, int, int]], values: Tensor) -> None:
        """Add blocks, `(places, 16)`, by expert, row and column."""
        self._places += places
        self._values.append(values)

    def store(self, blocks: Tensor, change: Callable[[Tensor], Tensor] = lambda values: values) -> None:
        """Write them into `(experts, capacity, columns, 16)`, in place, in one go but for whole experts.

        They are converted to the tensor's type on the host: which bits a NaN gets depends on the processor.

        Args:
            blocks: of any type and device.
            change: of the values, before they are stored.
        """
        for expert, row in self._experts:
            blocks[expert] = change(row).to(blocks.dtype).to(blocks.device)
        if self._places:
            index = torch.tensor(self._places).T.to(blocks.device)
            blocks[tuple(index)] = change(torch.cat(self._values)).to(blocks.dtype).to(blocks.device)


def draw_traps(places: Places, scale: Tensor, names: Iterable[str], draws: Source) -> Written:
    """Return the blocks of traps: those of a whole expert first, then those of a row, then those of blocks.

    Args:
        places: where they may be written; those which are drawn are written down there.
        scale: `(experts,)` float32 encode scales, on the host.
        names: of the traps; those without a block, or for another tensor, are ignored.
        draws: source of the places and values.

    Raises:
        UsageError: an unknown trap.
    """
    asked, written = {find_trap(name) for name in names}, Written()
    rows = list(places.rows)
    for trap, block in _filling(asked, "expert"):
        if rows:
            expert, _ = rows[draws.number(len(rows))]
            written.expert(expert, _stored(trap, _row(block, places.columns, draws), scale[expert]))
            places.experts.add(expert)
            rows = [(e, r) for e, r in rows if e != expert]
    for trap, block in _filling(asked, "row"):
        if rows:
            row = rows.pop(draws.number(len(rows)))
            stored = _stored(trap, _row(block, places.columns, draws), scale[row[0]])
            written.add([(*row, column) for column in range(places.columns)], stored)
            places.whole_rows.add(row)
    for trap, block in _filling(asked, "blocks"):
        for number in range(trap.blocks):
            place = places.free(rows, draws)
            if place is None:
                return written
            draw = BlockDraw(draws)
            _ = draw.sign, draw.step  # whether the block needs them or not: all later draws depend on it
            written.add([place], _stored(trap, block(draw, number), scale[place[0]]).unsqueeze(0))
            places.blocks.add(place)
    return written


def draw_gates(places: Places, scale: Tensor, names: Iterable[str], draws: Source) -> tuple[Written, Written]:
    """Return the blocks of the traps of the activation's input, gates and ups, as `draw_traps` does the others.

    Args:
        places: where they may be written.
        scale: `(experts,)` float32 encode scales of the intermediate, on the host.
        names: of the traps.
        draws: source of the places and values.

    Raises:
        UsageError: an unknown trap.
    """
    gates, ups = Written(), Written()
    for trap, block in _filling({find_trap(name) for name in names}, "blocks", "gate"):
        for number in range(trap.blocks):
            place = places.free(places.rows, draws)
            if place is None:
                return gates, ups
            gate, up = block(BlockDraw(draws), number)
            gates.add([place], gate.bfloat16().unsqueeze(0))
            ups.add([place], _stored(trap, up, scale[place[0]]).unsqueeze(0))
            places.blocks.add(place)
    return gates, ups


def _filling(asked: set[Trap], where: str, into: Place = "quantized") -> list[tuple[Trap, Block]]:
    """Return the traps with blocks of that extent, in the order of the table."""
    places = ("quantized", "quantizer") if into == "quantized" else (into,)
    return [
        (t, t.block)
        for t in TRAPS.values()
        if t in asked and t.block and t.where == where and t.into in places
    ]


def _row(block: Block, count: int, draws: Source) -> Tensor:
    """Return the blocks of a row, `(count, 16)` float64."""
    return torch.stack([block(BlockDraw(draws), number) for number in range(count)])


def _stored(trap: Trap, values: Tensor, scale: Tensor) -> Tensor:
    """Return a trap's values as they stand in the tensor, bfloat16, of an expert with that encode scale."""
    stored = (values / scale.double() if trap.scaled else values).bfloat16()
    # Which bits a NaN gets, its sign included, depends on how the processor converts it.
    nan = torch.where(values.signbit(), -0x40, 0x7FC0).to(torch.int16)
    return torch.where(values.isnan(), nan, stored.view(torch.int16)).view(torch.bfloat16)

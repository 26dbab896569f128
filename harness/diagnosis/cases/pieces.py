"""Rows of very different widths in one tensor: the wide ones are cut in pieces, so that the narrow ones need little padding.

A w1 of hidden 7,168 beside a w2 of inter 16 would be padded from a million elements to 200 million: no prediction of a
fault would end in time, or fit in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

_WASTED = 1 << 22  # elements of padding that are cheaper than pieces


@dataclass(frozen=True)
class Pieces:
    """How the rows of a tensor `(groups, pieces, cells, elements)` are cut.

    Attributes:
        row: `(pieces,)` int64, the row that each is of, in order.
        place: `(pieces,)` int64, which piece of its row it is.
    """

    row: Tensor
    place: Tensor

    def of_rows(self, mask: Tensor) -> Tensor:
        """Return a mask `(groups, pieces, ...)` bool by rows, the pieces side by side in the last dimension."""
        groups, rest = mask.shape[0], mask.shape[2:]
        rows, places = int(self.row[-1]) + 1, int(self.place.max()) + 1
        found = mask.new_zeros(groups, rows, places, *rest)
        found[:, self.row, self.place] = mask
        if not rest:
            return found.any(-1)
        return found.movedim(2, -2).reshape(groups, rows, *rest[:-1], places * rest[-1])

    def any(self, mask: Tensor) -> Tensor:
        """Return for each piece `(groups, pieces, ...)` whether any piece of its row is True."""
        rows = mask.new_zeros(mask.shape[0], int(self.row.max()) + 1, *mask.shape[2:], dtype=torch.int32)
        return rows.index_add_(1, self.row, mask.int()).bool()[:, self.row]

    def taken(self, which: Tensor) -> Pieces:
        """Return some of the pieces."""
        return Pieces(self.row[which], self.place[which])


def pieces_of(shapes: Sequence[tuple[int, int]], groups: int) -> tuple[int, Pieces | None]:
    """Return the width of the pieces and how rows are cut, None where they are as wide as the widest one and not cut.

    Args:
        shapes: rows and width of each part, one below the other.
        groups: of them all.
    """
    widest, narrowest = (choose(width for _, width in shapes) for choose in (max, min))
    padding = groups * sum(rows * (widest - width) for rows, width in shapes)
    if padding <= _WASTED:
        return widest, None
    rows, widths = torch.tensor(shapes).unbind(-1)
    counts = (-(-widths // narrowest)).repeat_interleave(rows)
    row = torch.arange(len(counts)).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    return narrowest, Pieces(row, torch.arange(len(row)) - first[row])


def joined(parts: Sequence[Tensor], width: int) -> Tensor:
    """Return parts `(groups, rows, width of its own)` one below the other, their rows cut in pieces of a width."""
    cut = [pad(part, (0, -part.shape[-1] % width)) for part in parts]
    return torch.cat([part.reshape(len(part), -1, width) for part in cut], dim=1)

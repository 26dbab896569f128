"""Tensor memory: 128 lanes of 512 columns of 32 bits per CTA, its allocation, and the shapes that tcgen05.ld moves.

Source: PTX ISA 9.7.16.2 (tensor memory) and 9.7.16.8 (tcgen05.ld).
"""

from __future__ import annotations

import numpy as np

from harness.interpreter.errors import MemoryFaultError, ProtocolError
from harness.interpreter.lanes import LANE_ID, M32, Array

ROWS, COLUMNS = 128, 512


class TensorMemory:
    """Tensor memory of one CTA, poisoned (NaN in every format) until it is written.

    Attributes:
        cells: `(128, 512)` uint32.
    """

    def __init__(self) -> None:
        self.cells: Array = np.full((ROWS, COLUMNS), M32, dtype=np.uint32)
        self._taken: dict[int, int] = {}
        self.may_allocate = True

    def allocate(self, columns: int) -> int | None:
        """Return the first column of a new allocation, None while there is no room."""
        if columns < 32 or columns > COLUMNS or columns & (columns - 1):
            raise ProtocolError(
                f"tcgen05.alloc of {columns} columns: a power of two from 32 to 512 is required"
            )
        if not self.may_allocate:
            raise ProtocolError("tcgen05.alloc after tcgen05.relinquish_alloc_permit")
        for start in range(0, COLUMNS, columns):
            if all(start + columns <= at or start >= at + size for at, size in self._taken.items()):
                self._taken[start] = columns
                return start
        return None

    def free(self, start: int, columns: int) -> None:
        """Give an allocation back."""
        if self._taken.get(start & 0xFFFF) != columns:
            raise ProtocolError(
                f"tcgen05.dealloc of {columns} columns at {start:#x}: allocated are {self._taken}"
            )
        del self._taken[start & 0xFFFF]

    def leaked(self) -> dict[int, int]:
        """Return what is still allocated: first column to number."""
        return dict(self._taken)

    def check(self, column: int, count: int) -> None:
        """Refuse columns that are not allocated."""
        for start, size in self._taken.items():
            if start <= column and column + count <= start + size:
                return
        raise MemoryFaultError(
            f"tensor memory columns [{column}, {column + count}) are not allocated; allocated are {self._taken}"
        )

    def read_32x32b(self, address: int, count: int, warp: int) -> list[Array]:
        """Return tcgen05.ld.32x32b: register j of lane i holds column j of row 32 * (warp % 4) + i."""
        row, column = self._place(address, warp, rows=32)
        self.check(column, count)
        block = np.ascontiguousarray(self.cells[row : row + 32, column : column + count].T)
        return list(block)

    def read_16x256b(self, address: int, repeat: int, warp: int) -> list[Array]:
        """Return tcgen05.ld.16x256b.

        Lane t holds columns 2 * (t % 4) and the next of row t / 4 in two registers and the same of row t / 4 + 8 in two
        more; each repetition moves on by 8 columns.
        """
        row, column = self._place(address, warp, rows=16)
        self.check(column, 8 * repeat)
        found = []
        lane_row, lane_column = LANE_ID // 4, LANE_ID % 4 * 2
        for step in range(repeat):
            found += [
                self.cells[row + down + lane_row, column + 8 * step + lane_column + right]
                for down in (0, 8)
                for right in (0, 1)
            ]
        return found

    def _place(self, address: int, warp: int, *, rows: int) -> tuple[int, int]:
        row, column = address >> 16, address & 0xFFFF
        first = 32 * (warp % 4)
        if not first <= row <= first + 32 - rows or row % rows:
            raise MemoryFaultError(
                f"tcgen05.ld at {address:#x}: row {row} is not one that warp {warp} may read ({first} to {first + 31})"
            )
        return row, column

"""GEMMs that add, round and scale in a way that is known here, for what identification has to name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reference.epilogue import CONTRACT, Epilogue
from reference.matrix_units import KOrder, matmul
from tests.identification.summing import Summing

Split = Callable[[int], tuple[int, ...]]
"""Where the parts of a k begin."""


class Known(Summing):
    """A GEMM of a summation and an epilogue.

    Args:
        text: of the summation.
        epilogue: what it makes of the sums.
        traits: that differ from those of `physical`.
    """

    def __init__(self, text: str, epilogue: Epilogue = CONTRACT, **traits: Any) -> None:
        super().__init__(text)
        self.epilogue = epilogue
        self.traits = replace(self.traits, **traits)

    def outputs(
        self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], alpha: Tensor | None, dtype: torch.dtype
    ) -> Tensor:  # fmt: skip
        """Return what an expert stores."""
        return self.epilogue(self.sums(expert, a, b), alpha, dtype)


class Streams(Known):
    """Stream k: parts in the output's type, each element's in an order of its own.

    Args:
        text: of the summation of a part.
        split: where the parts begin.
        traits: likewise.
    """

    def __init__(self, text: str, split: Split, **traits: Any) -> None:
        super().__init__(text, **traits)
        self.split = split
        self.draw = torch.Generator().manual_seed(1)

    def outputs(
        self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], alpha: Tensor | None, dtype: torch.dtype
    ) -> Tensor:  # fmt: skip
        """Return what an expert stores."""
        left, right = self.summation.operand(*a), self.summation.operand(*b)
        cuts = self.split(left.k)
        parts = torch.stack(
            [
                self.epilogue(
                    matmul(self.summation.unit, left.along_k(*ends), right.along_k(*ends), self.order), alpha, dtype
                )
                for ends in zip((0, *cuts), (*cuts, left.k), strict=True)
            ]
        )  # fmt: skip
        # The last part is stored, the others arrive in any order.
        key = torch.rand(len(parts) - 1, *parts.shape[1:], generator=self.draw).argsort(0)
        others, total = parts[:-1].gather(0, key), parts[-1]
        for part in others:
            total = (total.float() + part.float()).to(dtype)
        return total

    @property
    def order(self) -> Any:
        """Of a part."""
        return replace(self.summation.order(64), cuts=())


class OfRows(Known):
    """Another summation from some rows on, or of expert's with so many.

    Args:
        text: of the first rows.
        other: of the rows from `begin` on.
        begin: row.
        all_rows: the other one for all rows, where there are more than `begin`.
    """

    def __init__(self, text: str, other: str, begin: int, *, all_rows: bool = False) -> None:
        super().__init__(text)
        self.other, self.begin, self.all_rows = Known(other), begin, all_rows

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums, by place."""
        begin = 0 if self.all_rows and len(a[0]) > self.begin else self.begin
        top = super().sums(expert, (a[0][:begin], a[1][:begin]), b)
        if len(a[0]) <= begin:
            return top
        return torch.cat((top, self.other.sums(expert, (a[0][begin:], a[1][begin:]), b)))


class CutAnywhere(Known):
    """Two parts of k that begin where the tile stands: at some multiple of 16 or 64, by expert, rows and columns of a tile.

    Args:
        text: of the summation of a part.
        step: what cuts are multiples of.
        tile: rows and columns that share a cut.
    """

    def __init__(self, text: str, step: int, tile: int) -> None:
        super().__init__(text)
        self.step, self.tile = step, tile

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums, tile by tile."""
        left, right = self.summation.operand(*a), self.summation.operand(*b)
        steps, rows = left.k // self.step, []
        for row in range(0, len(a[0]), self.tile):
            tiles = []
            for column in range(0, len(b[0]), self.tile):
                cut = (row + 3 * column + 5 * expert) // self.tile * 7 % max(1, steps) * self.step
                some = left.at(slice(row, row + self.tile)), right.at(slice(column, column + self.tile))
                tiles.append(matmul(self.summation.unit, *some, KOrder((cut,) if cut else ())))
            rows.append(torch.cat(tiles, 1))
        return torch.cat(rows)

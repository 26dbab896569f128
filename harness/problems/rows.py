"""Which rows of an output are compared, and what the axes are called where they belong to no expert."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where the compared rows come from: expert and row number of each, `(rows,)` int64, and the names of the axes.

    Outputs that belong to no expert have other names: a rank and its tokens, for example.
    """

    expert: Tensor
    row: Tensor
    experts: int
    capacity: int
    column_name: str = "col"
    expert_name: str = "expert"
    row_name: str = "row"

    @classmethod
    def valid(
        cls, masked_m: list[int], capacity: int, device: torch.device | str, column_name: str = "col"
    ) -> Rows:
        """Return the valid rows of every expert, in order."""
        counts = torch.tensor(masked_m, device=device)
        expert = torch.repeat_interleave(torch.arange(len(masked_m), device=device), counts)
        start = torch.cumsum(counts, 0) - counts
        row = torch.arange(len(expert), device=device) - start[expert]
        return cls(expert, row, len(masked_m), capacity, column_name)

    def take(self, tensor: Tensor) -> Tensor:
        """Return the rows of a logical `(experts, capacity, ...)` tensor."""
        return tensor[self.expert, self.row]

    def only(self, kept: Tensor) -> Rows:
        """Return those of the rows that `kept`, `(rows,)` bool, says."""
        return replace(self, expert=self.expert[kept], row=self.row[kept])

    def __len__(self) -> int:
        return len(self.expert)

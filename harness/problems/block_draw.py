"""What the blocks of traps are made of: 16 float64 values at a time, on the host, from a problem's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reference.nvfp4 import BLOCK

if TYPE_CHECKING:
    from harness.problems.draws import Source


class BlockDraw:
    """Draws for one block. What is drawn, and in which order, decides every number that the problem draws afterwards.

    Args:
        draws: of the problem.
    """

    def __init__(self, draws: Source) -> None:
        self.draws = draws

    @cached_property
    def sign(self) -> Tensor:
        """Return -1 or 1 for each element, `(16,)` float64."""
        return self.draws.bits(BLOCK) * 2 - 1

    @cached_property
    def step(self) -> float:
        """Return a power of two from 1 to 32: the block scale that ties are measured in."""
        return float(2.0 ** self.number(6))

    def number(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        return self.draws.number(count)

    def place(self) -> int:
        """Return the index of an element."""
        return self.number(BLOCK)

    def uniform(self) -> Tensor:
        """Return values from 0 to 1, `(16,)` float64."""
        return self.draws.fractions(BLOCK)

    def normal(self) -> Tensor:
        """Return Gaussian values of deviation 1, `(16,)` float64."""
        return self.draws.gaussian(BLOCK)

    def shuffled(self, values: Sequence[float]) -> Tensor:
        """Return 16 given values in a drawn order, `(16,)` float64."""
        return torch.tensor(values, dtype=torch.float64)[self.draws.order(BLOCK)]

    @staticmethod
    def ramp(first: float, last: float) -> Tensor:
        """Return values in equal steps from one to the other, `(16,)` float64. Draws nothing."""
        return torch.linspace(first, last, BLOCK, dtype=torch.float64)

    @staticmethod
    def filled(value: float) -> Tensor:
        """Return a block of one value, `(16,)` float64. Draws nothing."""
        return torch.full((BLOCK,), value, dtype=torch.float64)

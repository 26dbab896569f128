"""What the blocks of traps are made of: 16 float64 values at a time, drawn from a problem's own generator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from reference.nvfp4 import BLOCK


class BlockDraw:
    """Draws for one block. What is drawn, and in which order, decides every number that the problem draws afterwards.

    Args:
        generator: of the problem.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    @cached_property
    def sign(self) -> Tensor:
        """Return -1 or 1 for each element, `(16,)` float64."""
        return torch.randint(0, 2, (BLOCK,), generator=self.generator).double() * 2 - 1

    @cached_property
    def step(self) -> float:
        """Return a power of two from 1 to 32: the block scale that ties are measured in."""
        return float(2.0 ** self.number(6))

    def number(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        return draw_number(count, self.generator)

    def place(self) -> int:
        """Return the index of an element."""
        return self.number(BLOCK)

    def uniform(self) -> Tensor:
        """Return values from 0 to 1, `(16,)` float64."""
        return torch.rand(BLOCK, generator=self.generator, dtype=torch.float64)

    def normal(self) -> Tensor:
        """Return Gaussian values of deviation 1, `(16,)` float64."""
        return torch.randn(BLOCK, generator=self.generator, dtype=torch.float64)

    def shuffled(self, values: Sequence[float]) -> Tensor:
        """Return 16 given values in a drawn order, `(16,)` float64."""
        return torch.tensor(values, dtype=torch.float64)[torch.randperm(BLOCK, generator=self.generator)]

    @staticmethod
    def ramp(first: float, last: float) -> Tensor:
        """Return values in equal steps from one to the other, `(16,)` float64. Draws nothing."""
        return torch.linspace(first, last, BLOCK, dtype=torch.float64)

    @staticmethod
    def filled(value: float) -> Tensor:
        """Return a block of one value, `(16,)` float64. Draws nothing."""
        return torch.full((BLOCK,), value, dtype=torch.float64)


def draw_number(count: int, generator: torch.Generator) -> int:
    """Return a number from 0 to `count` - 1."""
    return int(torch.randint(count, (), generator=generator))

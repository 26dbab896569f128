"""Where the numbers of a problem come from: which distributions they have, for each version of its string.

Version 2 draws from a counter (harness.problems.counter), on the device; version 1 from torch's generator on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.problems import tables
from harness.problems.counter import Counter
from harness.problems.direct_weights import SPREAD_GAINS, DrawnWeights, drawn_weights, mean_square
from harness.problems.torch_draws import TorchDraws
from reference.formats import Format
from reference.nvfp4 import BLOCK

_GRID = (0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0, -2.0)
_GRID_LARGEST = (6.0, -6.0)
_GRID_GAINS = (1.0, 2.0, 4.0)  # of blocks
_GRID_SQUARE = (mean_square(_GRID) * (BLOCK - 1) + mean_square(_GRID_LARGEST)) / BLOCK


class Draws(Counter):
    """One stream of a problem of version 2."""

    def tokens(
        self, shape: tuple[int, int, int], data: str, scale: Tensor, *, apart: bool
    ) -> tuple[Tensor, Tensor]:
        """Return tokens and how far those of each expert deviate from zero.

        Args:
            shape: experts, capacity, hidden.
            data: a key of harness.problems.problem.DATA.
            scale: `(experts,)` float32, encode scales, of "grid".
            apart: experts' magnitudes differ 100-fold, except on the grid.

        Returns:
            `shape` bfloat16 on the device, `(experts,)` float64 on the host.
        """
        experts, blocks = shape[0], (*shape[:2], shape[2] // BLOCK)
        factor = torch.ones(experts, dtype=torch.float64)
        gains: tuple[float, ...]
        if data == "grid":
            x, gains, square = self._grid_tokens(blocks).view(shape), _GRID_GAINS, _GRID_SQUARE
            # The scale is a power of two over an odd number: what is divided by it has few bits.
            factor = scale.double().reciprocal().mul(256).round() / 256
        else:
            x, square = self.pick(tables.normal(torch.bfloat16, self.device), *shape), 1.0
            gains = SPREAD_GAINS if data == "spread" else ()
            if apart:
                powers = [round(100 ** (expert / (experts - 1) - 0.5), 6) for expert in range(experts)]
                factor = torch.tensor(powers, dtype=torch.float64).bfloat16().double()
        if gains:
            of_blocks = self.pick(tables.evenly(gains, torch.bfloat16, self.device), *blocks, 1)
            x.view(*blocks, BLOCK).mul_(of_blocks)
            square *= mean_square(gains)
        if data == "grid" or apart:
            x.mul_(factor.bfloat16().to(self.device).view(-1, 1, 1))
        return x, factor * math.sqrt(square)

    def _grid_tokens(self, blocks: tuple[int, int, int]) -> Tensor:
        """Return blocks of small E2M1 values with one +-6 each, `(*blocks, 16)` bfloat16."""
        small, largest = (
            tables.evenly(values, torch.bfloat16, self.device) for values in (_GRID, _GRID_LARGEST)
        )
        x = self.pick(small, *blocks, BLOCK)
        return x.scatter_(-1, self.integers(0, BLOCK, *blocks, 1), self.pick(largest, *blocks, 1))

    def gate_up(self, shape: tuple[int, int, int], gain: Tensor) -> Tensor:
        """Return Gaussian numbers, `shape` bfloat16 on the device; `gain`, `(experts,)`, is their deviation."""
        values = self.pick(tables.normal(torch.bfloat16, self.device), *shape)
        return values.mul_(gain.bfloat16().to(self.device).view(-1, 1, 1))

    def weights(self, shape: tuple[int, int, int], data: str, form: Format) -> DrawnWeights:
        """Return weights of `(experts, n, k)` in a format of E2M1 codes, on the device."""
        return drawn_weights(self, shape, data, form)


Source = Draws | TorchDraws
"""Of a problem's numbers, whatever its version."""


def draws_of(version: int, purpose: str, seed: int, device: str) -> Source:
    """Return the source of a problem's numbers.

    Args:
        version: of the problem's string.
        purpose: what is drawn: another purpose is another stream.
        seed: of the numbers.
        device: torch device on which they are made; those of problems without a version are made on the CPU.
    """
    return TorchDraws(seed) if version == 1 else Draws(f"{purpose} {seed}", device)

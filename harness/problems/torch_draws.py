"""Numbers of problems whose string has no version: torch's generator on the CPU, as it always was.

Kept so that recorded failures can be repeated, on the versions of torch and the machines that draw the same numbers. What
is drawn, and in which order, is part of those problems.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.problems.direct_weights import SPREAD, DrawnWeights
from reference.formats import Format
from reference.nvfp4 import BLOCK, SCALE_RANGE


class TorchDraws:
    """One generator of such a problem; its methods are those of harness.problems.draws.Draws, everything on the CPU.

    Args:
        seed: of the generator.
    """

    device = "cpu"

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def number(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        return int(torch.randint(count, (), generator=self._generator))

    def order(self, count: int) -> Tensor:
        """Return the numbers from 0 to `count` - 1 in a drawn order, `(count,)` int64."""
        return torch.randperm(count, generator=self._generator)

    def bits(self, count: int) -> Tensor:
        """Return zeros and ones, `(count,)` float64."""
        return torch.randint(0, 2, (count,), generator=self._generator).double()

    def fractions(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return values from 0 to 1, of that type."""
        return torch.rand(shape, generator=self._generator, dtype=dtype)

    def gaussian(self, count: int) -> Tensor:
        """Return Gaussian values of deviation 1, `(count,)` float64."""
        return torch.randn(count, generator=self._generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        """Return values from 0 to 1, float32."""
        return torch.rand(shape, generator=self._generator)

    def normal(self, *shape: int) -> Tensor:
        """Return Gaussian values of deviation 1, float32."""
        return torch.randn(shape, generator=self._generator)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Return numbers from `low` to `high` - 1."""
        return torch.randint(low, high, shape, generator=self._generator, dtype=dtype)

    def tokens(
        self, shape: tuple[int, int, int], data: str, scale: Tensor, *, apart: bool
    ) -> tuple[Tensor, None]:
        """Return tokens of that shape, bfloat16; their deviation is not known."""
        values = self.normal(*shape)
        blocks = (*shape[:2], shape[2] // BLOCK)
        if data == "grid":
            codes = self._grid_codes(blocks)
            magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)[(codes & 7).int()]
            signed = torch.where(codes > 7, -magnitudes, magnitudes)
            stepped = torch.ldexp(signed, self.integers(0, 3, *blocks).unsqueeze(-1)).view(shape)
            return (stepped / scale.double().view(-1, 1, 1)).bfloat16(), None
        if data == "spread":
            values = values * self._gains(shape)
        if apart:
            spread = 100 ** (torch.arange(shape[0]) / (shape[0] - 1) - 0.5)
            values = values * spread.view(-1, 1, 1)
        return values.bfloat16(), None

    def gate_up(self, shape: tuple[int, int, int], gain: Tensor) -> Tensor:
        """Return Gaussian numbers, `shape` bfloat16; `gain`, `(experts,)`, is their deviation."""
        return (self.normal(*shape) * gain.view(-1, 1, 1)).bfloat16()

    def weights(self, shape: tuple[int, int, int], data: str, form: Format) -> DrawnWeights:
        """Return weights of `(experts, n, k)` in a format of E2M1 codes; their deviation is not known."""
        experts, n, k = shape
        if data == "grid":
            codes = self._grid_codes((experts, n, k // BLOCK)).view(shape)
            exponent = self.integers(6, 8, experts, n, k // form.block, dtype=torch.uint8)  # of two, plus 7
            return DrawnWeights(
                codes, exponent * 8 if form.scale == "e4m3" else exponent + (form.one_scale - 7), None
            )
        drawn = self.normal(*shape)
        values = (drawn * self._gains(shape) if data == "spread" else drawn).bfloat16()
        # Bits without their sign are in the order of the magnitudes, and integers are compared several times faster.
        amax = (values.view(torch.int16) & 0x7FFF).amax((1, 2)).view(torch.bfloat16).float()
        quantized = form.quantize(values, SCALE_RANGE / amax if form.encoded else None)
        return DrawnWeights(quantized.codes, quantized.block_scale, None)

    def _gains(self, shape: tuple[int, int, int]) -> Tensor:
        """Return a power of two for each block of 16, `shape` float32."""
        blocks = (*shape[:2], shape[2] // BLOCK)
        exponent = self.integers(-SPREAD, SPREAD + 1, *blocks)
        return torch.ldexp(torch.ones(blocks), exponent).repeat_interleave(BLOCK, -1)

    def _grid_codes(self, blocks: tuple[int, int, int]) -> Tensor:
        """Return blocks of small codes with one +-6 each, `(*blocks, 16)` uint8."""
        codes = self.integers(0, 5, *blocks, BLOCK, dtype=torch.uint8)
        place = self.integers(0, BLOCK, *blocks, 1)
        codes.scatter_(-1, place, torch.full_like(place, 7, dtype=torch.uint8))
        return codes | (self.integers(0, 2, *codes.shape, dtype=torch.uint8) << 3)

"""Weights of a problem, in any format: drawn from a small pool of seeds and cached, since runs ask for the same shapes again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from reference.certificate import step_exponents
from reference.formats import NVFP4, Coded, Format
from reference.nvfp4 import BLOCK, SCALE_RANGE

SMALL_ROWS = 8  # with the trap subnormal_scales, one row of the weights in so many has small scales only
NAN_ROWS = 8  # with the trap nan_scales: so few that no half of a block of the intermediate is NaN
ZERO_BLOCKS = 4  # with the trap zero_scales, one block of the weights in so many has a scale of zero
_SPREAD = 5  # "spread": blocks are scaled by 2^-5 to 2^5; every block scale stays a normal E4M3 value


@dataclass(frozen=True)
class Weights:
    """One GEMM's weights of all experts.

    Attributes:
        codes: `(experts, n, k)` uint8.
        block_scale: `(experts, n, k / block)` uint8.
        form: their format.
    """

    codes: Tensor
    block_scale: Tensor
    form: Format = NVFP4

    @cached_property
    def values(self) -> Tensor:
        """Codes times block scales, `(experts, n, k)` float32, exact."""
        return self.form.values(Coded(self.codes, self.block_scale))

    @cached_property
    def deviation(self) -> Tensor:
        """Root mean square of the values of each expert that are numbers, `(experts,)` float64 on the CPU."""
        return self.values.double().square().nanmean((1, 2)).sqrt().cpu()

    @cached_property
    def steps(self) -> Tensor:
        """Grid step of each row, `(experts, n)`: see reference.certificate."""
        return step_exponents(self.values)


@lru_cache(maxsize=32)
def make_weights(
    experts: int,
    n: int,
    k: int,
    data: str,
    seed: int,
    device: str,
    *,
    form: Format = NVFP4,
    small_rows: bool = False,
    zero_blocks: bool = False,
    nan_rows: bool = False,
) -> Weights:
    """Return weights for one GEMM. Cached: treat them as read-only (rules check that candidates do).

    Args:
        experts: experts on this rank.
        n: rows of each expert's weights.
        k: their width.
        data: a key of harness.problems.problem.DATA.
        seed: of the numbers.
        device: torch device type.
        form: of the weights.
        small_rows: give every eighth row block scales that are E4M3 subnormals (bytes 1 to 7), as a checkpoint has them
            whose per-tensor scale was folded into its block scales (flashinfer#3932).
        zero_blocks: give every fourth block, by chance, the block scale zero and leave its codes; small_rows and this are
            of E4M3 scales.
        nan_rows: give one block of every eighth row the block scale NaN.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + n * 1009 + k)
    if nan_rows:
        plain = make_weights(
            experts, n, k, data, seed, device, form=form, small_rows=small_rows, zero_blocks=zero_blocks
        )
        scale = plain.block_scale.clone()
        rows = scale[:, ::NAN_ROWS]
        place = torch.randint(rows.shape[2], (*rows.shape[:2], 1), generator=generator)
        rows.scatter_(2, place.to(device), form.nan_scale)
        return Weights(plain.codes, scale, form)
    if zero_blocks:
        plain = make_weights(experts, n, k, data, seed, device, small_rows=small_rows)
        zero = torch.randint(ZERO_BLOCKS, plain.block_scale.shape, generator=generator) == 0
        return Weights(plain.codes, plain.block_scale.masked_fill(zero.to(device), 0))
    if small_rows:
        plain = make_weights(experts, n, k, data, seed, device)
        scale = plain.block_scale.clone()
        small = torch.randint(1, 8, scale[:, ::SMALL_ROWS].shape, generator=generator, dtype=torch.uint8)
        scale[:, ::SMALL_ROWS] = small.to(device)
        return Weights(plain.codes, scale)
    if data == "grid":
        codes = grid_codes((experts, n, k // BLOCK), generator).view(experts, n, k)
        exponent = torch.randint(6, 8, (experts, n, k // form.block), generator=generator, dtype=torch.uint8)
        return Weights(codes.to(device), _power_scales(exponent, form).to(device), form)
    values = torch.randn(experts, n, k, generator=generator)
    values = (values * block_gains(values, generator) if data == "spread" else values).bfloat16()
    amax = values.abs().amax((1, 2)).float()
    quantized = form.quantize(values, SCALE_RANGE / amax if form.encoded else None)
    return Weights(quantized.codes.to(device), quantized.block_scale.to(device), form)


def _power_scales(exponent: Tensor, form: Format) -> Tensor:
    """Return the bytes of 2^(exponent - 7)."""
    return exponent * 8 if form.scale == "e4m3" else exponent + (form.one_scale - 7)


def block_gains(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return a power of two for each block of 16, `(*, k)`, such that dot products spread over many binades."""
    shape = (*values.shape[:-1], values.shape[-1] // BLOCK)
    exponent = torch.randint(-_SPREAD, _SPREAD + 1, shape, generator=generator)
    return torch.ldexp(torch.ones(shape), exponent).repeat_interleave(BLOCK, -1)


def grid_codes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return blocks of small codes with one +-6 each, so that the block scale is a known power of two."""
    codes = torch.randint(0, 5, (*shape, BLOCK), generator=generator, dtype=torch.uint8)
    place = torch.randint(0, BLOCK, (*shape, 1), generator=generator)
    codes.scatter_(-1, place, torch.full_like(place, 7, dtype=torch.uint8))
    return codes | (torch.randint(0, 2, codes.shape, generator=generator, dtype=torch.uint8) << 3)

"""What a quantizer is asked: blocks whose scale or codes lie next to a rounding boundary, and the values with rules of their own.

Formulas differ by a unit of float32 in what they round, so random data tells none apart. Here the encode scale of each
expert is made for a boundary: gs = 6 * middle / amax, so that a block's scale is a middle of two E4M3 values but for the
roundings, or gs = middle * scale / x, so that codes are. Every formula then falls on one side or the other by its own
roundings alone. All numbers are drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from harness.candidates.protocol import Traits
from reference.e2m1 import MIDPOINTS
from reference.nvfp4 import BLOCK

Quantize = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""x `(experts, rows, k)` bfloat16, masked_m, global_scale_enc to codes `(experts, rows, k)` and bytes `(experts, rows, k/16)`."""

BLOCKS = 4
_MANY = 256  # encode scales


@dataclass(frozen=True, eq=False)
class Questions:
    """What is quantized; compared by identity.

    Attributes:
        x: `(experts, rows, BLOCKS * 16)` bfloat16.
        global_scale_enc: `(experts,)` float32.
    """

    x: Tensor
    global_scale_enc: Tensor


@cache
def near_boundaries(experts: int, rows: int = 0) -> Questions:
    """Return rows of blocks next to the boundaries of scales and codes, a third each, and a third of exact ties.

    There is no NaN, zero or infinity.

    Args:
        experts: encode scales.
        rows: under each; 0: one where the encode scales are many, since they decide on which side a formula falls, else four.
    """
    rows = rows or (1 if experts >= _MANY else 4)
    draw = torch.Generator().manual_seed(1)
    third = experts // 3
    parts = (_scales(third, rows, draw), _ties(third, rows, draw), _codes(experts - 2 * third, rows, draw))
    return Questions(*(torch.cat(both) for both in zip(*parts, strict=True)))


def _scales(experts: int, rows: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return blocks whose scale is a middle of two E4M3 values."""
    amax = _drawn(draw, 128, 256, experts) / 128
    middle = (2 * _drawn(draw, 8, 16, experts) + 1) / 16
    gs = (6 * middle / amax * _power(draw, experts)).float()
    of_block = amax.view(-1, 1, 1) * _power(draw, experts, rows, BLOCKS)
    return _blocks(of_block, of_block.unsqueeze(-1), draw, often=0), gs


def _codes(experts: int, rows: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return elements that are a middle of two codes under the scale that amax gives."""
    x = _drawn(draw, 128, 256, experts) / 128
    middle = torch.tensor(MIDPOINTS, dtype=torch.float64)[_drawn(draw, 0, 7, experts).long()]
    scale, power = _drawn(draw, 8, 16, experts) / 8, _power(draw, experts)
    gs = (middle * scale / x * power).float()
    step = _power(draw, experts, rows, BLOCKS)  # of the stored scale
    amax = 6 * _along(scale) * step / _along(gs.double())
    at = _along(x / power) * step
    return _blocks(amax, at.unsqueeze(-1) * torch.exp2(_drawn(draw, -1, 2, *at.shape, BLOCK)), draw), gs


def _ties(experts: int, rows: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return exact middles, under encode scales that are powers of two and block scales that are in half of the experts."""
    gs, step = _power(draw, experts), _power(draw, experts, rows, BLOCKS)
    scale = _drawn(draw, 8, 16, experts) / 8
    scale[::2] = 1
    unit = _along(scale / gs) * step
    middles = torch.tensor(MIDPOINTS, dtype=torch.float64)[_drawn(draw, 0, 7, *unit.shape, BLOCK).long()]
    return _blocks(6 * unit, unit.unsqueeze(-1) * middles, draw), gs.float()


def _blocks(amax: Tensor, at: Tensor, draw: torch.Generator, often: int = 3) -> Tensor:
    """Return `(experts, rows, BLOCKS * 16)` bfloat16: elements as in `at`, `often` in four, others anywhere below amax."""
    amax = amax.bfloat16().double().unsqueeze(-1)
    shape = (*amax.shape[:-1], BLOCK)
    anywhere = amax * torch.rand(shape, generator=draw, dtype=torch.float64)
    x = torch.where(_drawn(draw, 0, 4, *shape) < often, at, anywhere).bfloat16().double().minimum(amax)
    x.scatter_(-1, _drawn(draw, 0, BLOCK, *shape[:-1]).long().unsqueeze(-1), amax)
    return (x * (1 - 2 * _drawn(draw, 0, 2, *shape))).bfloat16().flatten(-2)


def _drawn(draw: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=draw).double()


def _power(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.exp2(_drawn(draw, -3, 4, *shape))


def _along(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1)


@dataclass(frozen=True)
class Values:
    """Rows that hold what has rules of its own, under an encode scale of 1; each row is one of a kind, four blocks.

    Attributes:
        x: `(kinds, BLOCKS * 16)` bfloat16.
        kinds: what each row holds.
    """

    x: Tensor
    kinds: tuple[str, ...]


@cache
def special_values() -> Values:
    """Return NaN, infinities, zeros of either sign, and blocks whose scale is subnormal in E4M3."""
    draw = torch.Generator().manual_seed(2)
    plain = _blocks(torch.full((1, 5, BLOCKS), 6.0, dtype=torch.float64), torch.ones(1, 5, BLOCKS, 1), draw)[
        0
    ]
    x = plain.clone()
    x[:, ::BLOCK] = 6
    x[0, 3::BLOCK] = torch.nan
    x[1, 5::BLOCK] = torch.inf
    x[2, 5::BLOCK] = -torch.inf
    x[3, 2::BLOCK], x[3, 9::BLOCK] = -0.0, 0.0
    x[4] *= 2.0**-8
    return Values(x, ("NaN", "infinity", "-infinity", "zeros", "subnormal"))


def quantized(quantize: Quantize, traits: Traits, asked: Questions) -> tuple[Tensor, Tensor]:
    """Quantize some rows of each expert, in a tensor with the extents that the candidate takes; return codes and bytes."""
    experts, rows, columns = asked.x.shape
    m, k = traits.m_multiple, traits.k_multiple
    x = torch.zeros(experts, -(-rows // m) * m, -(-columns // k) * k, dtype=torch.bfloat16)
    x[:, :rows, :columns] = asked.x
    counts = torch.full((experts,), rows, dtype=torch.int32)
    codes, block_scale = quantize(*(t.to(traits.device) for t in (x, counts, asked.global_scale_enc)))
    return codes[:, :rows, :columns].cpu(), block_scale[:, :rows, : columns // BLOCK].cpu()

"""Weights drawn as codes and block scales, from the distribution that quantizing Gaussian numbers gives.

A block's largest magnitude m has the distribution function F(m) = (2 Phi(m) - 1)^block. It decides the block's scale and
the code of the largest element, which may stand anywhere. Given m, the other elements are independent, Gaussian and at
most m. So one draw picks m among 2^16 quantiles of F, which fall into some two dozen classes of the same scale and the
same largest code; another picks the place and the sign of that element; and each other pair of codes is one of 2^16
entries of its class. No number is quantized, and only the tables know of floats (harness.problems.tables).

Where the scale follows from all elements of a block (four over six), Gaussian numbers are quantized on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from harness.problems import tables
from harness.problems.counter import Counter
from harness.problems.tables import ENTRIES
from reference import e2m1
from reference.e4m3 import round_to_byte
from reference.formats import Format
from reference.nvfp4 import SCALE_RANGE

SPREAD = 5
SPREAD_GAINS = tuple(2.0**power for power in range(-SPREAD, SPREAD + 1))
"""Of blocks, with "spread"."""
_GRID = (0, 1, 2, 3, 4)  # magnitudes' codes of "grid", beside the largest
_GRID_POWERS = (-1, 0)  # of its block scales
_LARGEST = 7
# Quantized: Gaussian numbers are multiples of 1/256, and their encode scale is a power of two, so that sums of squared
# errors are exact, in whatever order a device adds.
_COARSE, _ENCODE = 256.0, 512.0
_BFLOAT16 = (0x3B00, 0x4140)  # bits of 2^-9 and of 12: every change of codes lies between
_AT_ONCE = {"cpu": 1 << 20}  # elements that are quantized at a time
_AT_ONCE_ELSEWHERE = 1 << 24


def mean_square(values: Sequence[float]) -> float:
    """Return the mean of squares, correctly rounded but for one division."""
    return math.fsum(value**2 for value in values) / len(values)


class DrawnWeights(NamedTuple):
    """Weights: codes `(experts, n, k)` uint8, block scales `(experts, n, k / block)` uint8, and their deviation from zero.

    The deviation is that of the distribution, since what is measured on a device depends on the order in which it adds; None
    where it is not known.
    """

    codes: Tensor
    block_scale: Tensor
    deviation: float | None


@dataclass(frozen=True)
class BlockTable:
    """What blocks are drawn from.

    Attributes:
        classes: `(2^16,)` uint8, the class of each quantile of a block's largest magnitude.
        scales: `(classes,)` uint8, the byte of the block scale.
        largest: `(classes,)` uint8, the code of the largest magnitude.
        pairs: `(classes * 2^16,)` int16, two codes each, the first one in the low byte.
        deviation: of the values from zero, without the gains of "spread".
    """

    classes: Tensor
    scales: Tensor
    largest: Tensor
    pairs: Tensor
    deviation: float


@lru_cache(maxsize=16)
def block_table(form: Format, device: str, *, grid: bool) -> BlockTable:
    """Return the table of a format of E2M1 codes: of the few codes of "grid", or of Gaussian numbers."""
    classes, scales, largest, shares = _grid(form) if grid else _gaussian(form)
    pairs = torch.cat([_pairs(share) for share in shares])
    weight = torch.bincount(classes.long()).tolist()
    squares = [value**2 for value in e2m1.MAGNITUDES]
    terms = [
        count * float(scale) ** 2 * ((form.block - 1) * math.fsum(map(math.prod, zip(share, squares, strict=True))) + squares[top])
        for count, scale, share, top in zip(weight, form.scales(scales), shares, largest.tolist(), strict=True)
    ]  # fmt: skip
    deviation = math.sqrt(math.fsum(terms) / ENTRIES / form.block)
    return BlockTable(classes.to(device), scales.to(device), largest.to(device), pairs.to(device), deviation)


def _grid(form: Format) -> tuple[Tensor, Tensor, Tensor, list[list[float]]]:
    """Return classes, scales, largest codes and shares of few codes and two powers of two."""
    shares = [[1 / len(_GRID) if code in _GRID else 0.0 for code in range(_LARGEST + 1)]] * len(_GRID_POWERS)
    classes = tables.evenly(range(len(_GRID_POWERS)), torch.uint8, "cpu")
    step = 8 if form.scale == "e4m3" else 1
    scales = torch.tensor([form.one_scale + step * power for power in _GRID_POWERS], dtype=torch.uint8)
    return classes, scales, torch.full_like(scales, _LARGEST), shares


def _gaussian(form: Format) -> tuple[Tensor, Tensor, Tensor, list[list[float]]]:
    """Return classes, scales, largest codes and, by class, the shares of the magnitudes of the other elements."""
    inside = (torch.arange(ENTRIES, dtype=torch.float64) + 0.5) / ENTRIES
    for _ in range(form.block.bit_length() - 1):  # square roots, the block being a power of two
        inside = inside.sqrt()
    largest = [NormalDist().inv_cdf(each) for each in ((1 + inside) / 2).tolist()]
    amax = torch.tensor(largest, dtype=torch.float64).bfloat16().double()  # weights are bfloat16
    encode = SCALE_RANGE / float(amax[-1]) if form.encoded else 1.0
    e4m3_scale = form.scale == "e4m3"
    byte = round_to_byte(amax * encode / e2m1.MAX) if e4m3_scale else form.power_of_two(amax)
    scale = form.scales(byte).double()
    top = e2m1.round_to_code(amax * encode / scale)
    keys, classes = torch.unique(byte.long() * 8 + top, return_inverse=True)
    scales, codes = (keys >> 3).to(torch.uint8), (keys & 7).to(torch.uint8)
    # An element below m is below x with the probability (2 Phi(x) - 1) / (2 Phi(m) - 1).
    below: list[list[float]] = [[] for _ in keys]
    for number, share in zip(classes.tolist(), (1 / inside).tolist(), strict=True):
        below[number].append(share)
    shares = [
        _shares(encode / float(scale), code, math.fsum(each) / len(each))
        for scale, code, each in zip(form.scales(scales), codes.tolist(), below, strict=True)
    ]
    return classes.to(torch.uint8), scales, codes, shares


def _shares(unit: float, largest: int, more: float) -> list[float]:
    """Return the shares of the magnitudes' codes among Gaussian elements, in bfloat16, that are at most the largest one.

    Args:
        unit: what an element of one deviation is before it is rounded to a code.
        largest: code of the largest element.
        more: how many times likelier it is to lie below a number, since none lies above the largest.
    """
    values = torch.arange(*_BFLOAT16, dtype=torch.int16).view(torch.bfloat16).double()
    codes = e2m1.round_to_code(values * unit)
    first = torch.searchsorted(codes, torch.arange(1, largest + 1, dtype=torch.uint8))
    # What lies above the middle is rounded to the first value of a code.
    middles = ((values[first - 1] + values[first]) / 2).tolist()
    ends = [(2 * NormalDist().cdf(middle) - 1) * more for middle in middles]
    shares = [end - start for start, end in zip([0.0, *ends], [*ends, 1.0], strict=True)]
    return shares + [0.0] * (_LARGEST - largest)


def _pairs(shares: list[float]) -> Tensor:
    """Return pairs of codes, `(2^16,)` int16: two independent codes with these shares of magnitudes, and any signs."""
    signed = [share / 2 for share in (*shares, *shares)]  # codes 8 to 15 are the negative ones
    both = torch.arange(256, dtype=torch.int16)
    codes = both & 15 | (both >> 4) << 8
    counts = tables.in_shares([signed[pair & 15] * signed[pair >> 4] for pair in range(256)])
    return codes.repeat_interleave(torch.tensor(counts))


def drawn_weights(draws: Counter, shape: tuple[int, int, int], data: str, form: Format) -> DrawnWeights:
    """Return weights of `(experts, n, k)`, on the device of the draws.

    Args:
        draws: their source.
        shape: experts, n, k.
        data: a key of harness.problems.problem.DATA.
        form: their format, of E2M1 codes.
    """
    if form.divisors and data != "grid":
        return _quantized(draws, shape, data, form)
    table, block = block_table(form, draws.device, grid=data == "grid"), form.block
    blocks = math.prod(shape) // block
    classes = draws.pick(table.classes, blocks)
    places = draws.integers(0, 2 * block, blocks, dtype=torch.uint8)
    codes = torch.empty((blocks, block), dtype=torch.uint8, device=draws.device)
    pairs = codes.view(torch.int16).view(-1)
    for part, lanes in draws.lanes(len(pairs)):
        own = slice(part.start * 2 // block, part.stop * 2 // block)
        first = (classes[own].int() << 16).add_(ENTRIES // 2)  # entry of the class for a lane of zero
        entry = lanes.view(-1, block // 2) + first.unsqueeze(-1)
        torch.index_select(table.pairs, 0, entry.view(-1), out=pairs[part])
        place = places[own].unsqueeze(-1)
        top = table.largest.index_select(0, classes[own].int()).unsqueeze(-1)
        codes[own].scatter_(1, place.long() & (block - 1), top | (place >= block).to(torch.uint8) << 3)
    scale = table.scales.index_select(0, classes.int())
    deviation = table.deviation
    if data == "spread":
        # Encoded, the largest fills the range, and every block scale stays a normal number.
        powers = range(-2 * SPREAD, 1) if form.encoded else range(-SPREAD, SPREAD + 1)
        step = 8 if form.scale == "e4m3" else 1
        steps = tuple(power * step % 256 for power in powers)
        scale += draws.pick(tables.evenly(steps, torch.uint8, draws.device), blocks)
        deviation *= math.sqrt(mean_square([2.0**power for power in powers]))
    return DrawnWeights(codes.view(shape), scale.view(*shape[:2], shape[2] // block), deviation)


def _quantized(draws: Counter, shape: tuple[int, int, int], data: str, form: Format) -> DrawnWeights:
    """Return Gaussian weights that were quantized, as many rows at a time as fit."""
    experts, n, k = shape
    coarse = (tables.quantiles() * _COARSE).round().div(_COARSE).bfloat16().to(draws.device)
    gains = SPREAD_GAINS if data == "spread" else (1.0,)
    of_blocks = draws.pick(
        tables.evenly(gains, torch.bfloat16, draws.device), experts * n, k // form.block, 1
    )
    encode = torch.full((1,), _ENCODE / gains[-1], dtype=torch.float32, device=draws.device)
    rows = max(_AT_ONCE.get(draws.device, _AT_ONCE_ELSEWHERE) // k, 1)
    codes = torch.empty((experts * n, k), dtype=torch.uint8, device=draws.device)
    scale = torch.empty((experts * n, k // form.block), dtype=torch.uint8, device=draws.device)
    for start in range(0, experts * n, rows):
        part = slice(start, min(start + rows, experts * n))
        gain = of_blocks[part]
        x = draws.pick(coarse, *gain.shape[:2], form.block).mul_(gain)
        coded = form.quantize(x.view(len(x), k), encode)
        codes[part], scale[part] = coded.codes, coded.block_scale
    deviation = _ENCODE / gains[-1] * math.sqrt(mean_square(gains))
    return DrawnWeights(codes.view(shape), scale.view(experts, n, k // form.block), deviation)

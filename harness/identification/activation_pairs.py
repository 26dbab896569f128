"""Pairs of gate and up whose activation tells apart in which types and how exactly it was computed.

Every pair is quantized in a block whose scale is known beforehand, under one of a few encode scales. Middles of two codes
then lie between two values of bfloat16, and a code says on which side of a rounding boundary the activation lay.
All numbers come from a fixed seed or from all mantissas of bfloat16.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from reference.e2m1 import MIDPOINTS, round_to_code

UNIT = 2.0**-23
ENCODE_SCALES = tuple(1 + index / 8 + 0.0437 for index in range(8))
"""One for each expert: no middle of two codes is a value of bfloat16 under any of them."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
ONE_GATE = 128.0
"""exp(-128) is 0 in float32 however it is computed: silu(128) is 128."""
PLAIN_GATE = 32.0
"""1 + exp(-32) is 1 in float32."""
_DRAWN = 1 << 14  # of which enough tell any two members apart
_PLAIN = 128
_CERTAIN = (
    2.0**-17
)  # relative error that changes no code of a coarse pair; __expf errs by 2^-19.5 at a gate of -4
_EACH = 16  # coarse pairs that tell two members apart
_MIDDLES = {1.0: 0.25, 1.25: 2.5, 1.5: 0.75, 1.75: 3.5}  # mantissa of a middle of two codes -> one such
_NEAR = 64  # units of float32 between an activation and a boundary


@dataclass(frozen=True)
class Member:
    """Types that values are rounded to on the way from the sums of a GEMM to the quantizer.

    Attributes:
        gemm1: gate and up.
        silu: silu(gate).
        hidden: silu(gate) * up.
        before_alpha: gate and up are rounded before they are multiplied by alpha, too.
    """

    gemm1: torch.dtype
    silu: torch.dtype
    hidden: torch.dtype
    before_alpha: bool = False

    def value(self, pairs: Pairs, error: float = 0.0) -> Tensor:
        """Return what is quantized, float64, with a relative error before each rounding."""
        gate, up = (self._gemm1(x, pairs.alpha) for x in (pairs.gate, pairs.up))
        silu = gate * torch.sigmoid(gate) * (1 + error)
        if self.silu != torch.float32:
            silu = silu.to(self.silu).double()
        hidden = silu * up * (1 + error)
        return hidden if self.hidden == torch.float32 else hidden.to(self.hidden).double()

    def _gemm1(self, sums: Tensor, alpha: float) -> Tensor:
        if self.before_alpha:
            sums = sums.to(self.gemm1).double()
        return (sums * alpha).float().to(self.gemm1).double()


@dataclass(frozen=True, eq=False)
class Pairs:
    """Elements to ask, one row each; compared by identity.

    Attributes:
        gate: `(pairs,)` float64, before alpha.
        up: `(pairs,)` float64, before alpha.
        expert: `(pairs,)` which of ENCODE_SCALES the element is quantized under.
        scale: `(pairs,)` float64, the block scale that its block has: 1 to 1.875.
        alpha: that gate and up are multiplied by, a float32.
    """

    gate: Tensor
    up: Tensor
    expert: Tensor
    scale: Tensor
    alpha: float = 1.0

    def real(self) -> Tensor:
        """Return silu(gate) * up, `(pairs,)` float64, rounded nowhere."""
        gate = self.gate * self.alpha
        return gate * torch.sigmoid(gate) * self.up * self.alpha

    def at(self, index: Tensor) -> Pairs:
        """Return some of them."""
        return Pairs(self.gate[index], self.up[index], self.expert[index], self.scale[index], self.alpha)

    def codes_of(self, value: Tensor) -> Tensor:
        """Return the codes of values `(*, pairs)`, signs apart."""
        return round_to_code(value.abs() * self._factor())

    def cells(self, codes: Tensor, hidden: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest magnitude that has the codes `(pairs,)`, signs apart, once rounded to a type."""
        ends = torch.tensor((0.0, *MIDPOINTS, torch.inf), dtype=torch.float64)
        code = codes.long() & 7
        low, high = (_visible(ends[at] / self._factor(), hidden) for at in (code, code + 1))
        return low, high

    def _factor(self) -> Tensor:
        return _encode_scales()[self.expert] / self.scale


def _visible(middle: Tensor, hidden: torch.dtype) -> Tensor:
    """Return the boundary that the code of a rounded activation shows: what rounds to the next value on either side."""
    if hidden == torch.float32:
        return middle
    mantissa, exponent = torch.frexp(middle)
    boundary = torch.ldexp((mantissa * 256).floor() + 0.5, exponent - 8)
    return torch.where((middle > 0) & middle.isfinite(), boundary, middle)


def _encode_scales() -> Tensor:
    return torch.tensor(ENCODE_SCALES).double()


def members(gemm1: Sequence[torch.dtype]) -> tuple[Member, ...]:
    """Return every way to round, with what gate and up may be rounded to; the usual one first.

    Where that is one type it was done before: no rounding in front of alpha is asked for.
    """
    bf16, f32, f16 = torch.bfloat16, torch.float32, torch.float16
    ways = [Member(*types) for types in itertools.product(gemm1, (f32, bf16, f16), (bf16, f32, f16))]
    early = [replace(way, before_alpha=True) for way in ways if len(gemm1) > 1 and way.gemm1 == bf16]
    return (*ways, *early)


@cache
def coarse_pairs(
    ways: tuple[Member, ...], bits: int, lowest: float, alpha: float = 1.0
) -> tuple[Pairs, Tensor]:
    """Return pairs that tell ways to round apart, and the code of each, `(ways, pairs)` uint8, signs apart.

    Some have a gate of PLAIN_GATE and the same code in every way: a quantizer that rounds to nearest has those right.

    Args:
        ways: what to tell apart.
        bits: significant bits of gate and up, before alpha.
        lowest: the lowest gate.
        alpha: of the pairs.
    """
    draw = torch.Generator().manual_seed(16)

    def drawn(low: float, high: float) -> Tensor:
        return torch.rand(_DRAWN, generator=draw, dtype=torch.float64) * (high - low) + low

    def rounded(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp((mantissa * 2**bits).round(), exponent - bits)

    gate = rounded(torch.where(drawn(0, 1) < 0.5, drawn(lowest, -0.25), drawn(0.25, 12)))
    gate[:_PLAIN] = PLAIN_GATE
    expert = torch.randint(len(ENCODE_SCALES), (_DRAWN,), generator=draw)
    scale = torch.randint(8, 16, (_DRAWN,), generator=draw).double() / 8
    middle = torch.tensor(MIDPOINTS, dtype=torch.float64)[torch.randint(7, (_DRAWN,), generator=draw)]
    middle[:_PLAIN] = middle[:_PLAIN].clamp(min=1.25)  # so that up is no smaller than elsewhere
    near = middle * (1 + drawn(-1, 1) * 2**-7) * scale / _encode_scales()[expert]
    of_one = Pairs(gate, torch.ones_like(gate), expert, scale, alpha)
    pairs = replace(of_one, up=rounded(near / of_one.real()))

    def codes_of(asked: Pairs, error: float) -> Tensor:
        return asked.codes_of(torch.stack([way.value(asked, error) for way in ways]))

    low = codes_of(pairs, -_CERTAIN)
    differ = (low != low[0]).any(0)
    asked = (differ ^ (pairs.gate == PLAIN_GATE)).nonzero().flatten()
    pairs, codes = pairs.at(asked), low[:, asked]
    certain = (codes == codes_of(pairs, _CERTAIN)).all(0)
    pairs, codes = pairs.at(certain), codes[:, certain]
    chosen = pairs.gate == PLAIN_GATE
    for one, other in itertools.combinations(codes, 2):
        chosen[(one != other).nonzero().flatten()[:_EACH]] = True
    return pairs.at(chosen), codes[:, chosen]


@dataclass(frozen=True)
class Near:
    """Pairs whose activation lies next to a rounding boundary.

    Attributes:
        pairs: what to ask.
        boundary: `(pairs,)` float64: a magnitude above it has the code `above`, one below it the code below that.
        above: `(pairs,)` uint8.
    """

    pairs: Pairs
    boundary: Tensor
    above: Tensor

    def at(self, index: Tensor) -> Near:
        """Return some of them."""
        return Near(self.pairs.at(index), self.boundary[index], self.above[index])

    def units(self) -> Tensor:
        """Return how far the real activation lies above the boundary, in units of 2^-23 of it."""
        return (self.pairs.real().abs() / self.boundary - 1) / UNIT


def _boundaries(hidden: torch.dtype) -> tuple[Tensor, ...]:
    """Return every boundary that a code shows, of activations rounded to a type: in [1, 2), and its middle, expert, scale."""
    expert = torch.arange(len(ENCODE_SCALES)).view(-1, 1, 1)
    scale = (torch.arange(8, 16).double() / 8).view(1, -1, 1)
    middle = torch.tensor(sorted(_MIDDLES), dtype=torch.float64).view(1, 1, -1)
    at = middle * scale / _encode_scales()[expert]
    at = torch.ldexp(torch.frexp(at)[0], torch.ones_like(at, dtype=torch.int32))
    at, expert, scale, middle = (x.expand(at.shape).flatten() for x in (at, expert, scale, middle))
    if hidden == torch.bfloat16:
        inside = at * 128 % 1
        keep = (inside > 0.1) & (inside < 0.9)  # a quantizer's own roundings do not reach as far
        at, expert, scale, middle = (x[keep] for x in (_visible(at, hidden), expert, scale, middle))
    order = at.argsort(stable=True)
    return tuple(x[order] for x in (at, middle, expert, scale))


@cache
def near_pairs(hidden: torch.dtype, lowest: float) -> Near:
    """Return all pairs of bfloat16 whose activation lies next to a boundary, of gates from -2 down to a lowest.

    At negative gates an exponential's error weighs most, and that of `__expf` grows with them.
    """
    gates = -torch.exp2(torch.arange(1, 7).double()).unsqueeze(1) * torch.arange(128, 256) / 128
    gates = gates[gates >= lowest]
    silu = (gates * torch.sigmoid(gates)).unsqueeze(1)
    mantissa = torch.arange(128, 256).double() / 128
    product = (silu * mantissa).abs().flatten()
    within = torch.ldexp(torch.frexp(product)[0], torch.ones_like(product, dtype=torch.int32))
    at, middle, expert, scale = _boundaries(hidden)
    right = torch.searchsorted(at, within).clamp(1, len(at) - 1)
    nearest = torch.where((at[right] - within).abs() < (within - at[right - 1]).abs(), right, right - 1)
    found = ((within / at[nearest] - 1).abs() < _NEAR * UNIT).nonzero().flatten()
    nearest = nearest[found]
    wanted = torch.tensor([_MIDDLES[m] for m in middle[nearest].tolist()], dtype=torch.float64)
    place = wanted * scale[nearest] / _encode_scales()[expert[nearest]]
    shift = torch.frexp(place)[1] - torch.frexp(product[found])[1]
    pairs = Pairs(
        gates[found // 128],
        torch.ldexp(mantissa[found % 128], shift),
        expert[nearest],
        scale[nearest],
    )
    boundary = torch.ldexp(at[nearest], torch.frexp(place)[1] - 1)
    return Near(pairs, boundary, pairs.codes_of(boundary * (1 + 2**-8)))

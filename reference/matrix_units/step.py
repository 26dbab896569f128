"""One instruction of a matrix unit, on values: `add_products`.

Every number here is a float64 that holds it exactly: a product has at most 48 bits, an aligned term at most 50 together
with its siblings, and powers of two are made from their bits, which is exact on every device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.matrix_units.unit import FORMATS, MatrixUnit

_NAN = {torch.float32: (torch.int32, 0x7FFFFFFF), torch.float16: (torch.int16, 0x7FFF)}
_FAR = 900  # exponents of infinities and NaN end here, so that no power of two leaves float64


@dataclass(frozen=True)
class Operands:
    """One side of a product: decoded values, with the exponents that the unit aligns by.

    Attributes:
        values: `(*, k)` float64.
        exponents: `(*, k)` int32, floor(log2) but never below that of the format's smallest normal number.
        scales: `(*, k / block)` float64 block scales, or None.
        scale_exponents: their exponents, or None.
    """

    values: Tensor
    exponents: Tensor
    scales: Tensor | None = None
    scale_exponents: Tensor | None = None

    @staticmethod
    def of(values: Tensor, format: str, scales: Tensor | None = None, scale_format: str = "e4m3") -> Operands:
        """Return the operand of decoded values.

        Args:
            values: `(*, k)` of any floating type, all of them values of the format.
            format: a key of FORMATS: subnormals have the exponent of its smallest normal number.
            scales: `(*, k / block)` decoded block scales; the sign of E4M3 scales is ignored, as the units do.
            scale_format: "e4m3" or "ue8m0".
        """
        wide = values.double()
        if scales is None:
            return Operands(wide, _exponents(wide, FORMATS[format]))
        factors = scales.double().abs()
        return Operands(
            wide, _exponents(wide, FORMATS[format]), factors, _exponents(factors, FORMATS[scale_format])
        )

    def __getitem__(self, k: slice) -> Operands:
        """Return a part of k: whole blocks where there are scales."""
        if self.scales is None or self.scale_exponents is None:
            return Operands(self.values[..., k], self.exponents[..., k])
        block = self.values.shape[-1] // self.scales.shape[-1]
        part = slice(k.start // block, -(-k.stop // block))
        return Operands(
            self.values[..., k],
            self.exponents[..., k],
            self.scales[..., part],
            self.scale_exponents[..., part],
        )

    def rows(self, index: slice | Tensor) -> Operands:
        """Return some rows: the first axis."""
        parts = (self.values, self.exponents, self.scales, self.scale_exponents)
        return Operands(*(None if part is None else part[index] for part in parts))  # type: ignore[arg-type]

    def unsqueeze(self, dim: int) -> Operands:
        """Return it with one more axis."""
        parts = (self.values, self.exponents, self.scales, self.scale_exponents)
        return Operands(*(None if part is None else part.unsqueeze(dim) for part in parts))  # type: ignore[arg-type]


def add_products(unit: MatrixUnit, a: Operands, b: Operands, total: Tensor) -> Tensor:
    """Return the accumulator after one instruction.

    Args:
        unit: which one.
        a: `(*, k)` with k at most the unit's; fewer products are padded with zeros, as kernels do.
        b: likewise; leading axes broadcast.
        total: `(*)` float32 (float16 where the unit's result is): the accumulator before it.

    Returns:
        `(*)`, the type of `total`. NaN is 0x7FFFFFFF or 0x7FFF, zero is +0.
    """
    terms, exponents = _grouped(unit, a, b) if unit.group else _products(unit, a, b)
    before = total.double()
    if unit.fraction is None:
        return _rounded(_exact_sum(terms, before), unit.result)
    least = FORMATS["float16" if total.dtype == torch.float16 else "float32"]
    of_total = torch.where(before == 0, unit.zero, _exponents(before, least))
    largest = torch.maximum(exponents.amax(-1), of_total)
    if terms.shape[-1] * max(unit.group, 1) < unit.k:
        largest = largest.clamp(min=unit.zero)
    to_units = _power_of_two(unit.fraction - largest)
    cut = torch.trunc(terms * to_units.unsqueeze(-1)).sum(-1) + torch.trunc(before * to_units)
    return _rounded(cut * _power_of_two(largest - unit.fraction), unit.result)


def _products(unit: MatrixUnit, a: Operands, b: Operands) -> tuple[Tensor, Tensor]:
    """Return every product and its exponent, `(*, k)`."""
    terms, exponents = a.values * b.values, a.exponents + b.exponents
    if a.scales is not None and b.scales is not None:
        assert a.scale_exponents is not None and b.scale_exponents is not None
        terms = terms * _spread(a.scales * b.scales, terms)
        exponents = exponents + _spread(a.scale_exponents + b.scale_exponents, terms)
    return terms, torch.where(terms == 0, unit.zero, exponents)


def _grouped(unit: MatrixUnit, a: Operands, b: Operands) -> tuple[Tensor, Tensor]:
    """Return the sum of every group times its block scales and the exponent of those, `(*, groups)`."""
    assert a.scales is not None and b.scales is not None
    assert a.scale_exponents is not None and b.scale_exponents is not None
    products = (a.values * b.values).unflatten(-1, (-1, unit.group))
    sums = products.sum(-1)
    factors = _spread(a.scales * b.scales, sums)
    exponents = _spread(a.scale_exponents + b.scale_exponents, sums)
    # A group whose products cancel keeps the exponent of its scales; one of zeros has that of zero.
    empty = (products == 0).all(-1) | (factors == 0)
    return sums * factors, torch.where(empty, unit.zero, exponents)


def _spread(per_block: Tensor, like: Tensor) -> Tensor:
    """Return values of blocks for each of their elements, or groups."""
    return per_block.repeat_interleave(like.shape[-1] // per_block.shape[-1], dim=-1)


def _exponents(x: Tensor, least: int) -> Tensor:
    """Return floor(log2 |x|) of float64 values, int32, between `least` and a bound that NaN and infinity have."""
    exponents = ((x.view(torch.int64) >> 52) & 0x7FF) - 1023
    return exponents.clamp(least, _FAR // 4).int()


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent.long().clamp(-_FAR, _FAR) + 1023) << 52).view(torch.float64)


def _exact_sum(terms: Tensor, before: Tensor) -> Tensor:
    """Return before + the only term, rounded to odd: rounding that to float32 is rounding the exact sum."""
    (term,) = terms.unbind(-1)
    total = before + term
    back = total - before
    error = (before - (total - back)) + (term - back)
    bits = total.view(torch.int64)
    inexact = (error != 0) & total.isfinite() & (bits & 1 == 0)
    away = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(inexact, bits + away, bits).view(torch.float64)


def _rounded(x: Tensor, result: str) -> Tensor:
    """Return a float64 sum as the instruction returns it."""
    if result == "float16":
        # torch rounds float64 to float16 through float32, so to 10 fractional bits here
        exponents = _exponents(x, FORMATS["float16"])
        out = (torch.round(x * _power_of_two(10 - exponents)) * _power_of_two(exponents - 10)).half()
    elif result == "nearest":
        out = x.float()
    else:
        fraction = {"float32": 23, "13 bits": 13}[result]
        exponents = _exponents(x, FORMATS["float32"])
        out = (
            torch.trunc(x * _power_of_two(fraction - exponents)) * _power_of_two(exponents - fraction)
        ).float()
    integer, pattern = _NAN[out.dtype]
    nan = torch.tensor(pattern, dtype=integer, device=out.device).view(out.dtype)
    return torch.where(out.isnan(), nan, out + 0.0)

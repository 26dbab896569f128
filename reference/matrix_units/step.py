"""One instruction of a matrix unit, on values: `add_products`.

Every number here is a float64 that holds it exactly: a product has at most 48 bits, an aligned term at most 50 together
with its siblings, and powers of two are made from their bits, which is exact on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from reference.matrix_units.unit import FORMATS, MatrixUnit

_NAN = {torch.float32: (torch.int32, 0x7FFFFFFF), torch.float16: (torch.int16, 0x7FFF)}
_NEEDS_SCALES = "a unit that adds groups exactly needs block scales of both operands, got none"
_OVERFLOW = 2.0**128  # from which on float32 has infinity, rounded toward zero as well
FAR = 900  # exponents of infinities and NaN end here, so that no power of two leaves float64


@dataclass(frozen=True)
class Numbers:
    """Values and the exponents that a unit aligns them by.

    Attributes:
        values: `(*, k)` float64.
        given: the exponents; or that of the format's smallest normal number, and they are computed when they are asked for:
            a unit that adds exactly, or aligns sums by their block scales, never does.
    """

    values: Tensor
    given: Tensor | int

    @cached_property
    def exponents(self) -> Tensor:
        """`(*, k)` int32, floor(log2), never below that of the format's smallest normal number."""
        return self.given if isinstance(self.given, Tensor) else exponents_of(self.values, self.given)

    @staticmethod
    def of(values: Tensor, number_format: str) -> Numbers:
        """Return values of any floating type, all of them values of the format (a key of FORMATS)."""
        return Numbers(values.double(), FORMATS[number_format])

    def __getitem__(self, index: Any) -> Numbers:
        known = "exponents" in vars(self) or isinstance(self.given, Tensor)
        return Numbers(self.values[index], self.exponents[index] if known else self.given)

    def spread(self, length: int) -> Numbers:
        """Return the numbers of blocks for each of their `length` elements or groups."""
        times = length // self.values.shape[-1]
        return Numbers(
            self.values.repeat_interleave(times, dim=-1), self.exponents.repeat_interleave(times, dim=-1)
        )

    def __mul__(self, other: Numbers) -> Numbers:
        return Numbers(self.values * other.values, self.exponents + other.exponents)


@dataclass(frozen=True)
class Operand:
    """One side of a matrix product: `elements` of `(*, k)`, and block scales of `(*, k / block)` or None."""

    elements: Numbers
    scales: Numbers | None = None

    def aligned_for(self, unit: MatrixUnit) -> Operand:
        """Return the same, with what a unit aligns by computed now and not for each part that is taken of it.

        A unit that adds exactly aligns by nothing: its elements are multiplied by their scales.
        """
        if unit.adds_exactly:
            return self if self.scales is None else Operand(Numbers(self.values(), self.elements.given))
        if unit.fraction is not None:
            for numbers in (self.scales,) if unit.group else (self.elements, self.scales):
                if numbers is not None:
                    _ = numbers.exponents
        return self

    @staticmethod
    def of(
        values: Tensor, number_format: str, scales: Tensor | None = None, scale_format: str = "e4m3"
    ) -> Operand:
        """Return the operand of decoded values.

        Args:
            values: `(*, k)` of any floating type, all of them values of the format.
            number_format: a key of FORMATS.
            scales: `(*, k / block)` decoded block scales; the sign of E4M3 scales is ignored, as the units do.
            scale_format: "e4m3" or "ue8m0".
        """
        elements = Numbers.of(values, number_format)
        return Operand(elements, None if scales is None else Numbers.of(scales.double().abs(), scale_format))

    @property
    def k(self) -> int:
        """Elements along k."""
        return self.elements.values.shape[-1]

    def values(self) -> Tensor:
        """Return elements times block scales, `(*, k)` float64."""
        if self.scales is None:
            return self.elements.values
        return self.elements.values * self.scales.values.repeat_interleave(
            self.k // self.scales.values.shape[-1], dim=-1
        )

    def along_k(self, start: int, stop: int) -> Operand:
        """Return a part of k: whole blocks, where there are scales."""
        part = self.elements[..., start:stop]
        if self.scales is None:
            return Operand(part)
        block = self.k // self.scales.values.shape[-1]
        return Operand(part, self.scales[..., start // block : -(-stop // block)])

    def turns(self, first: int, of: int, length: int) -> Operand:
        """Return every `of`-th stretch of `length` elements of k, whole blocks, from the `first` one on."""
        index = torch.arange(self.k, device=self.elements.values.device)
        index = index[index // length % of == first]
        if self.scales is None:
            return Operand(self.elements[..., index])
        block = self.k // self.scales.values.shape[-1]
        return Operand(self.elements[..., index], self.scales[..., index[::block] // block])

    def at(self, index: Any) -> Operand:
        """Return some rows, or with None in the index one more axis: leading axes are indexed."""
        return Operand(self.elements[index], None if self.scales is None else self.scales[index])


def add_products(unit: MatrixUnit, a: Operand, b: Operand, total: Tensor) -> Tensor:
    """Return the accumulator after one instruction.

    Args:
        unit: which one.
        a: `(*, k)` with k at most the unit's; fewer products are padded with zeros, as kernels do.
        b: likewise; leading axes broadcast.
        total: `(*)` float32 (float16 where the unit's result is): the accumulator before it.

    Returns:
        `(*)`, the type of `total`. NaN is 0x7FFFFFFF or 0x7FFF, zero is +0.
    """
    if unit.adds_exactly:
        return add_exactly(unit, a.values() * b.values(), total)
    terms = _groups(unit, a, b) if unit.group else _products(unit, a, b)
    return add_terms(unit, terms, total, padded=a.k < unit.k)


def add_exactly(unit: MatrixUnit, products: Tensor, total: Tensor) -> Tensor:
    """Return the accumulator after one instruction of a unit that adds exactly.

    Args:
        unit: which one.
        products: `(*, k)` float64, or their exact sums; k is at most the unit's.
        total: `(*)` float32 or float16: the accumulator before it; leading axes broadcast.
    """
    return _rounded(_exact_sum(products, total.double()), unit.result)


def add_terms(unit: MatrixUnit, terms: Numbers, total: Tensor, *, padded: bool = False) -> Tensor:
    """Return the accumulator after one instruction whose products, or sums of groups, are known.

    Args:
        unit: which one.
        terms: `(*, terms)`.
        total: `(*)` float32 or float16: the accumulator before it.
        padded: further terms are zero.
    """
    if unit.fraction is None:
        return add_exactly(unit, terms.values, total)
    before = total.double()
    least = FORMATS["float16" if total.dtype == torch.float16 else "float32"]
    of_total = torch.where(before == 0, unit.zero, exponents_of(before, least))
    largest = torch.maximum(terms.exponents.amax(-1), of_total)
    if padded:
        largest = largest.clamp(min=unit.zero)
    to_units = _power_of_two(unit.fraction - largest)
    cut = torch.trunc(terms.values * to_units.unsqueeze(-1)).sum(-1) + torch.trunc(before * to_units)
    return _rounded(cut * _power_of_two(largest - unit.fraction), unit.result)


def all_pairs(unit: MatrixUnit, a: Operand, b: Operand) -> Numbers:
    """Return the terms of one instruction for every row of a with every row of b.

    Args:
        unit: which one.
        a: `(m, k)`, k at most the unit's.
        b: `(n, k)`.

    Returns:
        `(m, n, terms)`: products, or sums of groups, which are added by matrix products, exact in float64.
    """
    if unit.fraction is None:
        sums = a.values() @ b.values().T
        return Numbers(sums.unsqueeze(-1), torch.zeros_like(sums, dtype=torch.int32).unsqueeze(-1))
    if not unit.group:
        return _products(unit, a.at((slice(None), None)), b.at(None))
    if a.scales is None or b.scales is None:
        raise ValueError(_NEEDS_SCALES)
    left, right = (x.elements.values.reshape(len(x.elements.values), -1, unit.group) for x in (a, b))
    groups = left.shape[1]
    sums, nonzero = (
        torch.bmm(x.transpose(0, 1), y.permute(1, 2, 0)).permute(1, 2, 0)
        for x, y in ((left, right), ((left != 0).double(), (right != 0).double()))
    )
    scales = a.scales.spread(groups)[:, None] * b.scales.spread(groups)[None]
    return _group_numbers(unit, sums, nonzero == 0, scales)


def _products(unit: MatrixUnit, a: Operand, b: Operand) -> Numbers:
    """Return every product, `(*, k)`."""
    products = a.elements * b.elements
    if a.scales is not None and b.scales is not None:
        products = products * (a.scales * b.scales).spread(a.k)
    empty = products.values == 0
    return Numbers(products.values, torch.where(empty, unit.zero, products.exponents))


def _groups(unit: MatrixUnit, a: Operand, b: Operand) -> Numbers:
    """Return the sum of every group times its block scales, `(*, groups)`."""
    if a.scales is None or b.scales is None:
        raise ValueError(_NEEDS_SCALES)
    products = a.elements.values * b.elements.values
    products = products.reshape(*products.shape[:-1], -1, unit.group)
    scales = (a.scales * b.scales).spread(products.shape[-2])
    return _group_numbers(unit, products.sum(-1), (products == 0).all(-1), scales)


def _group_numbers(unit: MatrixUnit, sums: Tensor, only_zeros: Tensor, scales: Numbers) -> Numbers:
    """Return sums of groups at the exponents of their scales, also where the products cancel; only zeros have zero's."""
    empty = only_zeros | (scales.values == 0)
    return Numbers(sums * scales.values, torch.where(empty, unit.zero, scales.exponents))


def exponents_of(x: Tensor, least: int) -> Tensor:
    """Return floor(log2 |x|) of float64 values, int32, between `least` and a bound that NaN and infinity have."""
    exponents = ((x.view(torch.int64) >> 52) & 0x7FF) - 1023
    return exponents.clamp(least, FAR // 4).int()


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent, float64. Exponents of a product are FAR at most, and those of formats leave no power out."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _exact_sum(terms: Tensor, before: Tensor) -> Tensor:
    """Return before + the terms, rounded to odd: rounding that to float32 is rounding the exact sum."""
    term = terms.sum(-1)
    total = before + term
    back = total - before
    error = (before - (total - back)) + (term - back)
    if not total.is_cuda and not error.any():  # NaN counts as an error; asking a GPU would wait for it
        return total
    bits = total.view(torch.int64)
    inexact = (error != 0) & total.isfinite() & (bits & 1 == 0)
    away = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(inexact, bits + away, bits).view(torch.float64)


def _rounded(x: Tensor, result: str) -> Tensor:
    """Return a float64 sum as the instruction returns it."""
    if result == "float16":
        # torch rounds float64 to float16 through float32, so to 10 fractional bits here
        exponents = exponents_of(x, FORMATS["float16"])
        out = (torch.round(x * _power_of_two(10 - exponents)) * _power_of_two(exponents - 10)).half()
    elif result == "float32":
        out, size = x.float(), x.abs()
        beyond = (out.abs() > size) & (size < _OVERFLOW)  # a unit too far from zero
        out = (out.view(torch.int32) - beyond.int()).view(torch.float32)
    elif result == "nearest":
        out = x.float()
    else:
        exponents = exponents_of(x, FORMATS["float32"])
        out = (torch.trunc(x * _power_of_two(13 - exponents)) * _power_of_two(exponents - 13)).float()
    return torch.where(out.isnan(), _nan(out.dtype, out.device), out + 0.0)


@lru_cache(maxsize=8)
def _nan(dtype: torch.dtype, device: torch.device) -> Tensor:
    integer, pattern = _NAN[dtype]
    return torch.tensor(pattern, dtype=integer, device=device).view(dtype)

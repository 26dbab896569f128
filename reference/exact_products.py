"""Dot products of rows with rows, exact, in the cheapest arithmetic that a certificate allows on a CPU.

With N(x) the Euclidean norm of a row over its grid step, sum |a||b| is at most N(a) N(b) steps. So the largest norm of either
side decides for all products at once, without a second matmul: below 2^24 a float32 matmul rounds nothing, below 2^53 none in
float64 does. Where whole rows are too large for float32, k is cut into pieces: the norms of a piece are smaller, and the sums of
the pieces are added in float64. Elsewhere the products are made in float64. Derivation: docs/bounds.md, "The grid certificate".
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from reference import certificate

BY_NORMS = "float32, certified by the product of norms"
BY_SUMS = "float32, certified by the sum of magnitudes"
IN_PIECES = "float32 in pieces of k, each certified by the product of norms"
IN_FLOAT64 = "float64, certified"
ROUNDED = "float64, which may have rounded"
_PIECES = (2, 4, 8)
_SHORTEST = 64  # elements of k for which a float32 matmul of a piece costs less than it saves
_LARGE = 2.0**60  # norms whose products are far from float32's largest number
_FLOAT32, _FLOAT64 = 2.0**certificate.FLOAT32_BITS, 2.0**certificate.FLOAT64_BITS


@dataclass(frozen=True)
class Side:
    """One side of a product, with what its certificates ask for, computed when it is first asked for.

    Attributes:
        values: `(rows, k)` floating point with at most 24 significant bits.
        given: `step_exponents(values)`, where the caller has it already.
    """

    values: Tensor
    given: Tensor | None = field(default=None, repr=False)

    @cached_property
    def steps(self) -> Tensor:
        """Exponent of each row's grid step, `(rows,)`: reference.certificate.step_exponents."""
        return certificate.step_exponents(self.values) if self.given is None else self.given

    @cached_property
    def largest(self) -> float:
        """The largest Euclidean norm of a row over its step, never below the true one; rows that hold NaN count as 0."""
        return self._largest(self._norms)

    @cached_property
    def fits_float32(self) -> bool:
        """Whether no product with such another side is too small or too large a number for float32."""
        return self._on_the_unit_grid and (not len(self._norms) or float(self._norms.max()) < _LARGE)

    def largest_of_pieces(self, ends: list[tuple[int, int]]) -> list[float]:
        """Return the largest norm of each piece of k, over the steps of the whole rows."""
        return [self._largest(self._norms_of(self.values[:, start:end])) for start, end in ends]

    def _largest(self, norms: Tensor) -> float:
        return float(torch.ldexp(norms, -self.steps).max()) if len(norms) else 0.0

    @cached_property
    def _norms(self) -> Tensor:
        return self._norms_of(self.values)

    def _norms_of(self, values: Tensor) -> Tensor:
        # Squares of multiples of 2^-10 stay far from float32's smallest number; infinite ones certify nothing.
        dtype = torch.float32 if self._on_the_unit_grid else torch.float64
        norms: Tensor = torch.linalg.vector_norm(values.to(dtype), dim=-1).double()
        return norms.nan_to_num(0.0, posinf=torch.inf).mul_(1 + values.shape[-1] * 2.0**-23)

    @cached_property
    def _on_the_unit_grid(self) -> bool:
        return not len(self.steps) or int(self.steps.min()) >= certificate.UNIT_EXPONENT


@dataclass(frozen=True)
class Products:
    """Dot products and how they were made.

    Attributes:
        values: `(m, n)` float64.
        exact: whether none of them was rounded.
        ways: elements by the way that made them exact: the constants of this module.
    """

    values: Tensor
    exact: bool
    ways: Counter[str]


def exact_products(a: Side, b: Side, sums: Tensor | None = None) -> Products:
    """Return a @ b.T.

    Args:
        a: `(m, k)`.
        b: `(n, k)`.
        sums: `(m, n)`, `magnitude_sums` of the same, where the caller has them.

    Returns:
        `(m, n)`. NaN and infinity in an operand come out as they do of any product of floating point numbers.
    """
    in_float32 = a.values.device.type == "cpu" and a.fits_float32 and b.fits_float32
    if in_float32 and certificate.is_full_float32():
        if a.largest * b.largest < _FLOAT32:
            return _made(_float32(a.values, b.values), BY_NORMS)
        if sums is not None and _certified(sums, a, b, certificate.FLOAT32_BITS):
            return _made(_float32(a.values, b.values), BY_SUMS)
        ends = _pieces(a, b)
        if ends:
            parts = [_float32(a.values[:, start:end], b.values[:, start:end]) for start, end in ends]
            return _made(sum(parts[1:], parts[0]), IN_PIECES)
    values = torch.mm(a.values.double(), b.values.double().T)
    if a.largest * b.largest < _FLOAT64:
        return _made(values, IN_FLOAT64)
    sums = certificate.magnitude_sums(a.values, b.values) if sums is None else sums
    exact = _certified(sums, a, b, certificate.FLOAT64_BITS)
    return _made(values, IN_FLOAT64 if exact else ROUNDED, exact=exact)


def _certified(sums: Tensor, a: Side, b: Side, bits: int) -> bool:
    """Return whether that many bits hold every partial sum of all products."""
    return bool(certificate.certified(sums, a.steps, b.steps, bits).all())


def _pieces(a: Side, b: Side) -> list[tuple[int, int]]:
    """Return the ends of few pieces of k whose products float32 holds, none where there are no such."""
    k = a.values.shape[-1]
    for pieces in _PIECES:
        # Norms grow with the square root of the length: what is far too large is not looked at.
        if k < pieces * _SHORTEST or a.largest * b.largest >= pieces * _FLOAT32:
            continue
        length = -(-k // pieces)
        ends = [(start, min(start + length, k)) for start in range(0, k, length)]
        norms = zip(a.largest_of_pieces(ends), b.largest_of_pieces(ends), strict=True)
        if all(left * right < _FLOAT32 for left, right in norms):
            return ends
    return []


def _made(values: Tensor, way: str, *, exact: bool = True) -> Products:
    return Products(values, exact, Counter({way: values.numel()} if values.numel() else {}))


def _float32(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a.float(), b.float().T).double()

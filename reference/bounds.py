"""What a masked GEMM may return: the legal interval of every output element.

The accumulator holds the exact dot product c up to an error E, which is a number of units of the largest partial sum; then
the epilogue multiplies by alpha in float32 and rounds once to the output type. Each of these steps is monotone, so every
legal output lies between the epilogue of c - E and the epilogue of c + E. Where the grid certificate holds E is 0 and both
ends meet.

Rules: GEMM-2 (bit equality), GEMM-3 (interval). Derivation: docs/bounds.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference import certificate
from reference.epilogue import CONTRACT, Epilogue
from reference.exact_products import Products, Side, exact_products

Predict = Callable[[Tensor], Tensor]
"""Elements of an `(m, n)` product, as a mask -> the float32 sums that the candidate's accumulator holds for them, in the order
of the mask's nonzero elements (reference.matrix_units.Summation.chosen)."""


@dataclass(frozen=True)
class Accumulator:
    """How the candidate's GEMM adds.

    Attributes:
        bits: significant bits of the running sum (24: float32).
        chunk: products that are added before the sum is rounded or truncated once (64: one FP4 instruction).
        measured: bits were measured through the candidate itself; otherwise they are assumed and bit equality is not
            demanded.
        window: significant bits that each product keeps, below the largest term of its instruction, when the terms are
            aligned (26: an H100 drops what lies 2^-26 below the largest).
        epilogue: what is made of the sum.
    """

    bits: int = 24
    chunk: int = 64
    measured: bool = False
    window: int = 26
    epilogue: Epilogue = CONTRACT

    @property
    def certified_bits(self) -> int:
        """Bits below which every partial sum is exact, whatever is added in which order."""
        return min(self.bits, self.window, certificate.FLOAT32_BITS)

    def truncation(self, k: int) -> float:
        """Return the error of the running sum, in multiples of the largest partial sum, for k products.

        One truncation, a unit of 2^(1 - bits), for each chunk, and two more for carries between partial sums.
        """
        return (-(-k // self.chunk) + 2) * 2.0 ** (1 - self.bits)

    def alignment(self, k: int) -> float:
        """Return the error of aligning the terms within the instructions, in multiples of the largest partial sum.

        Each of a chunk's products and the running sum may lose what lies below the window; a chunk of one product is
        rounded as a whole, which `truncation` counts.
        """
        if self.chunk == 1:
            return 0.0
        return -(-k // self.chunk) * (self.chunk + 1) * 2.0 ** (1 - self.window)

    def units(self, k: int) -> float:
        """Return both errors together: what a dot product of k terms can be off by where nothing is certified."""
        return self.truncation(k) + self.alignment(k)

    def describe(self) -> str:
        """Return the model in words, as the record shows it."""
        source = "measured" if self.measured else "assumed"
        aligned = f", terms aligned to {self.window} bits" if self.chunk > 1 else ""
        return f"{self.bits}-bit accumulator ({source}), one truncation per {self.chunk} products{aligned}"


@dataclass(frozen=True)
class LegalOutput:
    """The legal interval of each element, in the output type.

    Attributes:
        low: `(m, n)`, smallest legal value.
        high: `(m, n)`, largest legal value; the same object where every element has one legal value.
        exact: `(m, n)` float64, alpha times the exact dot product.
        bit_equal: `(m, n)` bool, the certificate holds: one legal value (zeros of either sign).
        oracle_exact: whether every float64 dot product was itself exact.
        undecided: `(m, n)` bool, an infinite alpha times a sum that may be zero: either infinity and NaN are legal; None
            where there is none.
        ways: elements by the way that made their dot product exact (reference.exact_products).
    """

    low: Tensor
    high: Tensor
    exact: Tensor
    bit_equal: Tensor
    oracle_exact: bool
    undecided: Tensor | None = None
    ways: Counter[str] = field(default_factory=Counter)

    def accepts(self, out: Tensor) -> Tensor:
        """Return which elements are legal: inside the interval, or NaN where the exact result is NaN."""
        inside = (out >= self.low) & (out <= self.high)
        legal = torch.where(self.exact.isnan(), out.isnan(), inside)
        return legal if self.undecided is None else torch.where(self.undecided, ~out.isfinite(), legal)

    def ratio(self, out: Tensor) -> Tensor:
        """Return the distance from the exact value over the distance to the legal end on that side, float64.

        0 is exact, up to 1 is legal; elements with one legal value give 0 or infinity.
        """
        value = out.double()
        edge = torch.where(value >= self.exact, self.high.double(), self.low.double())
        ratio = (value - self.exact).abs() / (edge - self.exact).abs()
        return torch.where(
            self.accepts(out),
            ratio.nan_to_num(0.0, posinf=1.0).clamp(max=1.0),
            # the wrong side of a tie is as far away as the right one
            ratio.nan_to_num(torch.inf).clamp(min=1 + 2.0**-40),
        )


def legal_gemm(
    a: Tensor,
    b: Tensor,
    alpha: Tensor | None,
    dtype: torch.dtype,
    accumulator: Accumulator,
    *,
    b_steps: Tensor | None = None,
    predict: Predict | None = None,
    within_float64: bool = False,
    rounded_once: bool = False,
    row_scale: Tensor | None = None,
    scaled_in: int = 0,
) -> LegalOutput:
    """Return the legal outputs of one expert's GEMM.

    Args:
        a: `(m, k)` decoded operand (code x block scale), valid rows only.
        b: `(n, k)` decoded operand.
        alpha: `()` float32, or None for 1.
        dtype: output type: bfloat16, float16 or float32.
        accumulator: how the candidate adds.
        b_steps: `step_exponents(b)`, where the caller has it already.
        predict: what the candidate's accumulator holds, where that is known bit for bit: see `Predict`.
        within_float64: what is predicted holds only where float64 sums are exact.
        rounded_once: the candidate's accumulator holds the exact sum, rounded once to float32: where that is known, no bound
            is asked.
        row_scale: `(m, 1)` float32, a factor of each row of a, which the epilogue multiplies with; None for 1.
        scaled_in: elements of k whose sum is multiplied by a float32 scale, that of a, before it is added; 0: none.

    Returns:
        The legal interval of every element of `(m, n)`.

    Rules: GEMM-2, GEMM-3.
    """
    left, right = Side(a), Side(b, b_steps)
    certain = accumulator.measured and left.largest * right.largest < 2.0**accumulator.certified_bits
    sums = None if certain or rounded_once else certificate.magnitude_sums(a, b)
    products = exact_products(left, right, sums)
    stores = Stores(accumulator.epilogue, alpha, dtype, row_scale)
    if certain or (rounded_once and products.exact and not scaled_in):
        low, high = stores.range(products.values)
        bit_equal = torch.full(low.shape, certain, device=low.device)
        return LegalOutput(
            low, high, stores.scaled(products.values), bit_equal, products.exact, ways=products.ways
        )
    sums = certificate.magnitude_sums(a, b) if sums is None else sums
    legal = _by_bound(products, (left, right), sums, stores, accumulator, scaled_in)
    if predict is not None:
        # The model costs more than the bound: it is asked where the bound leaves more than one value.
        several = (legal.low != legal.high) & products.values.isfinite()
        several = several if legal.undecided is None else several & ~legal.undecided
        if within_float64 and not products.exact:
            several &= certificate.certified(sums, left.steps, right.steps, certificate.FLOAT64_BITS)
        if bool(several.any()):
            legal.low[several], legal.high[several] = stores.range(predict(several), several)
    return legal


def _by_bound(
    products: Products,
    sides: tuple[Side, Side],
    sums: Tensor,
    stores: Stores,
    accumulator: Accumulator,
    scaled_in: int,
) -> LegalOutput:
    """Return what every order of additions may give; arguments as those of `legal_gemm`, `sums` being `magnitude_sums`."""
    exact, k, steps = products.values, sides[0].values.shape[-1], (sides[0].steps, sides[1].steps)
    partial = certificate.largest_partial_sums(sums, exact, k)
    scaled, bit_equal = stores.scaled(exact), torch.zeros_like(sums, dtype=torch.bool)
    if accumulator.measured:
        bit_equal = certificate.certified(partial, *steps, accumulator.certified_bits)
        if bool(bit_equal.all()):
            low, high = stores.range(exact)
            return LegalOutput(low, high, scaled, bit_equal, products.exact, ways=products.ways)
    # Terms that all fit the window of an instruction lose nothing when they are aligned.
    aligned = certificate.certified(partial, *steps, accumulator.window)
    error = partial * torch.where(aligned, accumulator.truncation(k), accumulator.units(k))
    if not products.exact:
        error += sums * (k * 2.0**-certificate.FLOAT64_BITS)
    if scaled_in:  # each part is rounded when it is scaled, after it lost what its own additions lose
        error += sums * (accumulator.units(scaled_in) + 2.0**-22)
    error = error.masked_fill_(
        bit_equal | exact.isinf(), 0.0
    )  # infinity and finite numbers are infinity in every order
    low, high = stores.between(exact - error, exact + error)
    undecided = None
    if stores.alpha is not None and bool(stores.alpha.isinf()):
        undecided = (error > 0) & (exact.abs() <= error)
    return LegalOutput(low, high, scaled, bit_equal, products.exact, undecided, products.ways)


@dataclass(frozen=True)
class Stores:
    """What an epilogue stores of accumulators `(m, n)`, whose rows may have factors."""

    epilogue: Epilogue
    alpha: Tensor | None
    dtype: torch.dtype
    row_scale: Tensor | None

    def scaled(self, sums: Tensor) -> Tensor:
        """Return sums `(m, n)` float64 times alpha and the factors, not rounded."""
        scaled = sums if self.alpha is None else sums * self.alpha.double()
        return scaled if self.row_scale is None else scaled * self.row_scale.double()

    def range(self, sums: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value that known sums give: one where the epilogue joins alpha and the factor.

        Otherwise these come in any order.

        Args:
            sums: `(m, n)`, or those of some elements.
            where: `(m, n)` bool, which elements, in the order of `where.nonzero()`; None for all.
        """
        if self.row_scale is None:
            only = self.epilogue(sums, self.alpha, self.dtype)
            return only, only
        factor = self.row_scale if where is None else self.row_scale.expand_as(where)[where]
        low, *others = (
            self.epilogue.scaled(sums, self.alpha, factor, self.dtype, order)
            for order in self.epilogue.orders
        )
        high = low
        for other in others:
            low, high = torch.minimum(low, other), torch.maximum(high, other)
        return low, high

    def between(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest and the largest value that sums between two ends give."""
        if self.alpha is not None and bool(self.alpha < 0):
            low, high = high, low
        return self.range(low)[0], self.range(high)[1]


def epilogue(accumulated: Tensor, alpha: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return what the epilogue stores: float32 accumulator, times alpha in float32, rounded once to the output type.

    Args:
        accumulated: float64, rounded to float32 first.
        alpha: `()` float32 or None.
        dtype: output type.
    """
    return CONTRACT(accumulated, alpha, dtype)

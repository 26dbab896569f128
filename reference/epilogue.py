"""What a GEMM's epilogue makes of its float32 accumulators: the contract's way, and others that kernels are found to have."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

CASTS = (
    "after alpha",
    "before alpha",
    "alpha rounded to bfloat16",
    "before alpha, alpha rounded to bfloat16",
)
EACH = "factors: each rounded to bfloat16"
"""What a candidate declares (Traits.deviations) whose epilogue is one with `each`."""
HELD = "sums: held times 2^-119"
"""What a candidate declares whose accumulators hold sums times that, so that small ones are rounded to bfloat16's subnormals."""
ROUNDINGS = ("to nearest even", "toward zero", "away from zero", "to nearest, ties away from zero")
ORDERS = ("factor first", "alpha first", "both joined first")
"""In which a sum may be multiplied with alpha and a factor of its row."""
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True)
class Epilogue:
    """The way from an accumulator to the stored value; the default is the contract's.

    Attributes:
        cast: one of CASTS: when the accumulator is rounded to the output's type, and in which type alpha is used.
        rounding: one of ROUNDINGS, of that rounding.
        fused: the product with alpha is not rounded to float32 first.
        each: where alpha is used in bfloat16, a row's factor is too, and what is used is their rounded product; else it is
            their float32 product, rounded once.
        held: sums that are rounded before alpha are held times 2 to this power.
    """

    cast: str = CASTS[0]
    rounding: str = ROUNDINGS[0]
    fused: bool = False
    each: bool = False
    held: int = 0

    @property
    def joins(self) -> bool:
        """Whether alpha and a row's factor are multiplied with each other first, so that a sum has one stored value."""
        return self.cast.endswith("bfloat16")

    @property
    def orders(self) -> tuple[str, ...]:
        """In which orders a sum may be multiplied with alpha and a factor of its row."""
        return ORDERS[-1:] if self.joins else ORDERS

    def scaled(
        self, sums: Tensor, alpha: Tensor | None, factor: Tensor, dtype: torch.dtype, order: str
    ) -> Tensor:
        """Return the stored values of sums whose rows have factors.

        Args:
            sums: `(*)` float32, or float64 to be rounded to it.
            alpha: float32 that broadcasts, or None.
            factor: float32 that broadcasts, of the rows.
            dtype: output type.
            order: one of `orders`.
        """
        if alpha is None:
            alpha = torch.ones_like(factor)
        if order == ORDERS[0]:
            return self(sums.float() * factor, alpha, dtype)
        if order == ORDERS[1]:
            return self(sums.float() * alpha, factor, dtype)
        return self(sums, self.joined(alpha, factor), dtype)

    def joined(self, alpha: Tensor, factor: Tensor) -> Tensor:
        """Return what sums are multiplied with, float32, of an alpha and a factor of their rows that broadcast."""
        if not self.joins:
            return alpha * factor
        if self.each:
            alpha, factor = (value.bfloat16().float() for value in (alpha, factor))
        return (alpha * factor).bfloat16().float()

    def __call__(self, accumulated: Tensor, alpha: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the stored values, `(*)` of `dtype`.

        Args:
            accumulated: `(*)` float32, or float64 to be rounded to it.
            alpha: float32 that broadcasts, or None.
            dtype: output type.
        """
        value = accumulated.float()
        if alpha is not None:
            if self.cast.startswith("before"):
                scale = 2.0**self.held
                value = (rounded(value.double() * scale, dtype, self.rounding).double() / scale).float()
            factor = alpha.float()
            if self.cast.endswith("bfloat16"):
                factor = factor.bfloat16().float()
            value = value.double() * factor.double() if self.fused else value * factor
        return rounded(value, dtype, self.rounding)


CONTRACT = Epilogue()


def held_by(deviations: Collection[str]) -> int:
    """Return the power of two that sums are held times, as declared: `Epilogue.held`."""
    return -119 if HELD in deviations else 0


_LOWER: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "to nearest even": lambda down, up, even: (down < up) | ((down == up) & even),
    "toward zero": lambda _down, _up, even: torch.ones_like(even),
    "away from zero": lambda down, _up, _even: down == 0,
    "to nearest, ties away from zero": lambda down, up, _even: down < up,
}
"""Whether a magnitude goes to the smaller one of its neighbours, by how far it is from both and whether the smaller is even."""


def rounded(x: Tensor, dtype: torch.dtype, rounding: str) -> Tensor:
    """Return float32 or float64 values rounded once to an output type; what overflows is infinity, but toward zero.

    Args:
        x: `(*)` float32 or float64.
        dtype: bfloat16, float16 or float32; to float32 always to nearest even.
        rounding: one of ROUNDINGS.
    """
    if dtype not in _BITS or (rounding == ROUNDINGS[0] and x.dtype == torch.float32):
        return x.to(dtype)  # torch rounds float64 through float32: twice, where the output is narrower
    nearest, wide = x.to(dtype), x.double().abs()
    bits = nearest.abs().view(_BITS[dtype])
    # The neighbours of x: magnitudes of one sign are in the order of their bits.
    lower = (bits - (nearest.abs().double() > wide).to(bits.dtype)).view(dtype)
    upper = (lower.view(_BITS[dtype]) + 1).view(dtype)
    down, up = wide - lower.double(), upper.double() - wide
    even = lower.view(_BITS[dtype]) % 2 == 0
    takes_lower = _LOWER[rounding](down, up, even)
    magnitude = torch.where(takes_lower, lower, upper)
    beyond = (
        upper.isinf() if rounding.startswith("to nearest") else torch.zeros_like(even)
    )  # half a unit above the largest number overflows
    magnitude = torch.where(beyond, nearest.abs(), magnitude)
    return torch.where(x.isfinite(), torch.copysign(magnitude, nearest), nearest)

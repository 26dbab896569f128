"""Roundings to E4M3 and E2M1: the right one, to nearest with ties to even, and those that kernels have by mistake.

Where a candidate rounds otherwise the name here says how, and where it declares so it is judged by it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference import e2m1, e4m3

TO_EVEN = "to even"
Rounding = Callable[[Tensor], Tensor]


def _passed(magnitude: Tensor, limits: tuple[float, ...], *, at: bool) -> Tensor:
    """Return how many of the limits a magnitude lies past, or at least at."""
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for limit in limits:
        code += magnitude >= limit if at else magnitude > limit
    return code


def _code_to_odd(magnitude: Tensor) -> Tensor:
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for below, middle in enumerate(e2m1.MIDPOINTS):
        code += magnitude >= middle if below % 2 == 0 else magnitude > middle
    return code


CODE_ROUNDINGS: dict[str, Rounding] = {
    TO_EVEN: e2m1.round_to_code,
    "away from zero": lambda magnitude: _passed(magnitude, e2m1.MIDPOINTS, at=True),
    "toward zero": lambda magnitude: _passed(magnitude, e2m1.MIDPOINTS, at=False),
    "to odd": _code_to_odd,
    "everything toward zero": lambda magnitude: _passed(magnitude, e2m1.MAGNITUDES[1:], at=True),
    "everything away from zero": lambda magnitude: _passed(magnitude, e2m1.MAGNITUDES[:-1], at=False),
}
"""Ties between two codes, or every value between two: magnitudes `(*)` float32 or float64 to codes 0 to 7 uint8, NaN to 0."""


def _to_byte(x: Tensor) -> Tensor:
    return e4m3.encode_e4m3(x) if x.dtype == torch.float32 else e4m3.round_to_byte(x)


def _byte_rounded(steps: Callable[[Tensor], Tensor]) -> Rounding:
    """Return a rounding to E4M3 that takes a number of steps, float64, to a whole one."""

    def rounded(x: Tensor) -> Tensor:
        value = x.double().clamp(max=e4m3.MAX)
        exponent = torch.frexp(value.clamp(min=e4m3.MIN_NORMAL))[1] - 1
        byte = steps(torch.ldexp(value, 3 - exponent)) + (exponent + 6) * 8
        return torch.where(x.isnan(), e4m3.NAN_BYTE, byte).to(torch.uint8)

    return rounded


SCALE_ROUNDINGS: dict[str, Rounding] = {
    TO_EVEN: _to_byte,
    "away from zero": _byte_rounded(lambda steps: torch.floor(steps + 0.5)),
    "toward zero": _byte_rounded(lambda steps: torch.ceil(steps - 0.5)),
    "everything toward zero": _byte_rounded(torch.floor),
    "everything away from zero": _byte_rounded(torch.ceil),
}
"""The same for block scales: values `(*)` float32 or float64, not negative, to E4M3 bytes uint8; saturating, NaN to 0x7F."""

"""When is a dot product exact in every order of accumulation? The grid certificate.

Operands of a GEMM are multiples of a power of two: each row of A of some step 2^ga, each row of B of some 2^gb.
Every partial sum of a dot product c, in any order and any grouping, is then a multiple of 2^(ga + gb). It lies between the
sum of the negative products and the sum of the positive ones, so its magnitude is at most (sum |a||b| + |c|) / 2. If that is
less than 2^bits steps, an accumulator that keeps `bits` significant bits holds every partial sum exactly: nothing is ever
rounded or truncated, and the result must be equal bit for bit.

Rule: GEMM-2 (bit equality where the certificate holds). Derivation: docs/bounds.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNIT_EXPONENT = -10  # smallest E2M1 x E4M3 product: 0.5 * 2^-9
FLOAT32_BITS = 24
FLOAT64_BITS = 53
_CHUNK = 1 << 17  # elements looked at at a time, so that they stay in a CPU's cache
_MANY = 1 << 28  # at a time elsewhere: what is made of them on the way takes three times their memory
_NO_STEP, _FAR = 1 << 30, 500  # rows of zeros lie on any grid: a step larger than any, and an exponent


def step_exponents(values: Tensor) -> Tensor:
    """Return, per row, the exponent of the largest power of two of which every element is a multiple.

    Args:
        values: `(*, k)` floating point, none of them subnormal in float64.

    Returns:
        `(*)` int32. Rows of zeros count as multiples of 2^20 or more; rows that hold NaN or infinity mean nothing.
    """
    at_once = _CHUNK if values.device.type == "cpu" else _MANY
    if values.numel() <= at_once or values.ndim < 2:
        return _step_exponents(values)
    rows = values.reshape(-1, values.shape[-1])
    parts = torch.split(rows, max(1, at_once // values.shape[-1]))
    return torch.cat([_step_exponents(part) for part in parts]).view(values.shape[:-1])


def steps_of_scales(scale: Tensor) -> Tensor:
    """Return, per row, the exponent of a power of two of which every E2M1 element times its block scale is a multiple.

    It is at most `step_exponents` of the products, for a look at one number in 16.

    Args:
        scale: `(*, k / 16)` floating point, decoded E4M3 block scales; NaN counts as the smallest.

    Returns:
        `(*)` int32.
    """
    return (step_exponents(scale) - 1).clamp(min=UNIT_EXPONENT)  # elements are multiples of 0.5


def _step_exponents(values: Tensor) -> Tensor:
    """E2M1 times E4M3, for example, are integers in units of the smallest one: the lowest bit of all of a row is wanted."""
    # float64 stays: float32 has no number below 2^-149 but zero, which lies on any grid, and rounds bits away that count.
    wide = values if values.dtype == torch.float64 else values.float()
    units = _in_units(wide)
    if units is None:  # NaN decides nothing
        units = _in_units(wide.nan_to_num(nan=2.0**UNIT_EXPONENT))
    if units is None:
        return _lowest_bits(values)
    while units.shape[-1] > 1:
        half = (units.shape[-1] + 1) // 2
        units = units[..., :half] | units[..., -half:]
    units = units.squeeze(-1)
    lowest_bit = torch.where(units == 0, _NO_STEP, units & -units)
    return torch.frexp(lowest_bit.double())[1] - 1 + UNIT_EXPONENT


def _in_units(values: Tensor) -> Tensor | None:
    scaled = values * 2.0**-UNIT_EXPONENT
    units = scaled.int()
    # Several times quicker than all().
    return None if bool(units.to(scaled.dtype).ne_(scaled).sum()) else units


def _lowest_bits(values: Tensor) -> Tensor:
    """Return the exponent of the lowest bit that is set in each row of any values."""
    bits = values.double().view(torch.int64)
    mantissa = (bits & ((1 << 52) - 1)) | (1 << 52)
    lowest = torch.frexp((mantissa & -mantissa).double())[1] - 1
    exponent = ((bits >> 52) & 0x7FF).int() - 1023 - 52 + lowest
    return torch.where(values == 0, _FAR, exponent).amin(-1).int()


def is_full_float32() -> bool:
    """Return whether a float32 matmul is one here: a process may let it be TF32 or bfloat16, on GPUs and on CPUs."""
    try:
        return torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # somebody used both the old and the new switches: torch does not say
        return False


def magnitude_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return sum |a||b| for every pair of rows, never below the true value.

    Args:
        a: `(m, k)` floating point with at most 24 significant bits.
        b: `(n, k)` likewise.

    Returns:
        `(m, n)` float64: a float32 product, raised by the k * 2^-23 that float32 may have lost.
    """
    dtype = torch.float32 if is_full_float32() else torch.float64
    return torch.mm(a.abs().to(dtype), b.abs().to(dtype).T).double() * (1 + a.shape[-1] * 2.0**-23)


def largest_partial_sums(sums: Tensor, exact: Tensor, k: int) -> Tensor:
    """Return a bound on the magnitude of every partial sum, in any order: (sum |a||b| + |c|) / 2.

    Args:
        sums: `(m, n)` float64, from `magnitude_sums`.
        exact: `(m, n)` float64, the dot products c, which float64 itself may have rounded.
        k: number of products.

    Returns:
        `(m, n)` float64, never below the true value.
    """
    return (sums * (1 + k * 2.0**-FLOAT64_BITS) + exact.abs()) / 2


def certified(partial_sums: Tensor, a_steps: Tensor, b_steps: Tensor, bits: int) -> Tensor:
    """Return which dot products every accumulator of `bits` significant bits computes exactly.

    The bound is strict: a term of exactly 2^bits steps would need a window one bit wider to be added to a term of one step.

    Args:
        partial_sums: `(m, n)` float64, from `largest_partial_sums` or, larger, `magnitude_sums`.
        a_steps: `(m,)` from `step_exponents`.
        b_steps: `(n,)` likewise.
        bits: significant bits that the accumulator was measured to keep.

    Returns:
        `(m, n)` bool; False where the sum is NaN.
    """
    # partial_sums < 2^(ga + bits) * 2^gb, written as an outer product of exact powers of two
    limit_a = torch.ldexp(torch.ones_like(a_steps, dtype=torch.float64), a_steps + bits)
    limit_b = torch.ldexp(torch.ones_like(b_steps, dtype=torch.float64), b_steps)
    return partial_sums < limit_a.unsqueeze(-1) * limit_b

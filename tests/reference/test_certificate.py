"""The grid certificate: where it holds, every order of accumulation gives the exact sum; where it ends, some do not."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from harness.emulation.accumulate import truncate
from reference import certificate
from reference.e4m3 import decode_e4m3
from reference.exact_products import Side, exact_products
from reference.nvfp4 import decode_blocks


def operand(rows: int, k: int, seed: int, *, spread: int = 4) -> Tensor:
    """Return code x block scale values, block scales within `spread` binades."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, k), generator=generator, dtype=torch.uint8)
    scale = torch.randint(64 - 8 * spread // 2, 64 + 8 * spread // 2, (rows, k // 16), generator=generator)
    return decode_blocks(codes, scale.to(torch.uint8), torch.float32)


def in_order(a: Tensor, b: Tensor, order: Tensor) -> Tensor:
    """Return a @ b.T for `(m, k)` and `(n, k)`, one product after the other, truncated to float32 each time."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for i in order.tolist():
        total = truncate(total + a[:, i, None].double() * b[:, i].double())
    return total


@pytest.mark.parametrize("k", [32, 256, 512])
def test_certified_dot_products_are_exact_in_every_order(k: int) -> None:
    """GEMM-2: sums truncated after each product, in three orders and split in two, equal the exact one bit for bit."""
    a, b = operand(12, k, 1), operand(9, k, 2)
    sums = certificate.magnitude_sums(a, b)
    holds = certificate.certified(sums, certificate.step_exponents(a), certificate.step_exponents(b), 24)
    exact = a.double() @ b.double().T
    orders = [
        torch.arange(k),
        torch.arange(k).flip(0),
        torch.randperm(k, generator=torch.Generator().manual_seed(3)),
    ]
    for order in orders:
        assert torch.equal(in_order(a, b, order)[holds], exact[holds])
        halves = [in_order(a, b, part) for part in order.chunk(2)]
        assert torch.equal(truncate(halves[0] + halves[1])[holds], exact[holds])
    assert holds.float().mean() > (0.9 if k < 512 else 0.3)


def test_where_the_certificate_ends_orders_differ() -> None:
    """GEMM-2: with block scales over 14 binades it refuses, and truncation is seen."""
    a, b = operand(12, 256, 1, spread=14), operand(9, 256, 2, spread=14)
    sums = certificate.magnitude_sums(a, b)
    holds = certificate.certified(sums, certificate.step_exponents(a), certificate.step_exponents(b), 24)
    exact = a.double() @ b.double().T
    got = in_order(a, b, torch.arange(256))
    assert not holds.any()
    assert (got != exact).any()


def test_the_limit_is_less_than_two_to_the_bits_steps() -> None:
    """GEMM-2: sums, steps and bits at the edge."""
    steps = torch.tensor([-10, 0], dtype=torch.int32)
    edge = torch.ldexp(torch.ones(2, 1, dtype=torch.float64), steps.unsqueeze(-1) + 3 + 24)
    other = torch.tensor([3], dtype=torch.int32)
    assert certificate.certified(edge * (1 - 2.0**-24), steps, other, 24).all()
    assert not certificate.certified(edge, steps, other, 24).any()
    assert certificate.certified(edge, steps, other, 25).all()
    assert not certificate.certified(edge * torch.nan, steps, other, 24).any()


def test_no_partial_sum_of_any_order_exceeds_the_bound_on_them() -> None:
    """GEMM-2, GEMM-3: the positive products first reach it, or the negative ones; random orders stay below."""
    a, b = operand(6, 256, 1, spread=14), operand(5, 256, 2, spread=14)
    exact = a.double() @ b.double().T
    bound = certificate.largest_partial_sums(certificate.magnitude_sums(a, b), exact, 256)
    products = a.double().unsqueeze(1) * b.double().unsqueeze(0)
    worst = torch.maximum(products.clamp(min=0).sum(-1), -products.clamp(max=0).sum(-1))
    assert (bound >= worst).all()
    assert (bound <= worst * 1.001).all()
    for seed in range(5):
        order = torch.randperm(256, generator=torch.Generator().manual_seed(seed))
        assert (products[..., order].cumsum(-1).abs().amax(-1) <= bound).all()


def test_step_exponents_are_the_largest_common_power_of_two() -> None:
    """GEMM-2: against fractions, row by row; zeros lie on any grid."""
    values = operand(50, 64, 5, spread=14)
    values[0] = 0
    values[1] = 0
    values[1, 3] = 96
    got = certificate.step_exponents(values).tolist()
    assert got[0] == 20
    assert got[1] == 5
    for row, step in list(zip(values.tolist(), got, strict=True))[1:]:
        multiples = [Fraction(v) / Fraction(2) ** step for v in row]
        assert all(m.denominator == 1 for m in multiples)
        assert any(m.numerator % 2 for m in multiples)


def test_every_product_of_code_and_scale_lies_on_the_finest_grid() -> None:
    """GEMM-2: all 16 x 127 of them are multiples of 2^-10."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(127, 1)
    values = decode_blocks(codes, torch.arange(127, dtype=torch.uint8).unsqueeze(-1), torch.float32)
    assert certificate.step_exponents(values)[1:].min() == certificate.UNIT_EXPONENT
    assert certificate.step_exponents(values)[0] == 20


def test_magnitude_sums_are_never_below_the_true_sum() -> None:
    """GEMM-2, GEMM-3: float32 may lose, so the result is raised."""
    a, b = operand(30, 4096, 6, spread=14), operand(20, 4096, 7, spread=14)
    true = a.double().abs() @ b.double().abs().T
    got = certificate.magnitude_sums(a, b)
    assert (got >= true).all()
    assert (got <= true * 1.001).all()


@pytest.mark.parametrize("value", [2.0**-11, 1 / 3, 2.0**21 + 1 / 16, 3 * 2.0**100, 2.0**-133])
def test_values_of_other_formats_lie_on_grids_too(value: float) -> None:
    """GEMM-2: any float64 is a multiple of its lowest bit; rows of zeros count as coarse, and NaN spoils its row only."""
    rows = torch.tensor([[1.0, value], [0.0, -value], [0.0, 0.0], [4.0, torch.nan]], dtype=torch.float64)
    steps = certificate.step_exponents(rows).tolist()
    for row, step in zip(rows.tolist()[:2], steps, strict=False):
        multiples = [Fraction(v) / Fraction(2) ** step for v in row]
        assert all(m.denominator == 1 for m in multiples)
        assert any(m.numerator % 2 for m in multiples)
    assert steps[2] >= 20


@pytest.mark.parametrize(("value", "step"), [(2.0**-160, -160), (-(2.0**-1000), -1000), (2 + 2.0**-28, -28)])
def test_what_float32_would_not_hold_counts_in_float64(value: float, step: int) -> None:
    """GEMM-2: below 2^-149, and with more than 24 bits; beside NaN too. Such products are certified in no 24 bits."""
    rows = torch.tensor([[1.0, value], [2.0, 2.0]], dtype=torch.float64)
    assert certificate.step_exponents(rows).tolist() == [step, 1]
    assert certificate.step_exponents(torch.tensor([[torch.nan, value]], dtype=torch.float64)).item() == step
    made = exact_products(Side(rows), Side(torch.ones(1, 2, dtype=torch.float64)))
    assert made.values[0, 0].item() == 1 + value
    assert made.exact == (Fraction(1) + Fraction(value) == Fraction(1 + value))


def test_nan_counts_as_finest_among_codes() -> None:
    """GEMM-2: E2M1 codes times E4M3 scales."""
    assert certificate.step_exponents(torch.tensor([[4.0, torch.nan]])).tolist() == [-10]


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_process_that_lets_float32_be_something_else_changes_no_bound(precision: str) -> None:
    """GEMM-2: the sums of magnitudes must never be too small, whatever a switch of the process allows matmuls to do."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 256, generator=generator) for _ in range(2))
    exact = torch.mm(a.abs().double(), b.abs().double().T)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert not certificate.is_full_float32()
        assert bool((certificate.magnitude_sums(a, b) >= exact).all())
        whole = exact_products(Side(a.round()), Side(b.round())).values
    finally:
        torch.set_float32_matmul_precision(before)
    assert certificate.is_full_float32()
    assert torch.equal(whole, torch.mm(a.round().double(), b.round().double().T))


def test_steps_seen_in_block_scales_are_steps_of_every_row() -> None:
    """Every row is a multiple of them; they are no larger than the exact steps, and equal where a row has an odd code."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 16, (512, 64), generator=generator, dtype=torch.uint8)
    byte = torch.randint(0, 256, (512, 4), generator=generator, dtype=torch.uint8)
    byte[::3] = 0x38
    byte[5] = 0
    codes[::4] &= 0b1100  # no odd one
    steps = certificate.steps_of_scales(decode_e4m3(byte))
    values = decode_blocks(codes, byte, torch.float64)
    number = ~values.isnan().any(-1)
    assert bool((steps <= certificate.step_exponents(values)).all())
    assert int(steps.min()) >= certificate.UNIT_EXPONENT
    counted = torch.ldexp(values[number], -steps[number].unsqueeze(-1))
    assert torch.equal(counted, counted.round())
    assert torch.equal(steps[3::12], certificate.step_exponents(values)[3::12])

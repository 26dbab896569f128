"""Exact products on a CPU: each way gives the sums of integers, is taken where it should be, and never where it may not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reference import certificate
from reference.exact_products import (
    BY_NORMS,
    BY_SUMS,
    IN_FLOAT64,
    IN_PIECES,
    ROUNDED,
    Side,
    exact_products,
)
from reference.nvfp4 import decode_blocks, quantize_nvfp4


def operand(rows: int, k: int, seed: int, spread: float = 0.0) -> Tensor:
    """Return NVFP4 values of Gaussian numbers, blocks apart by a log-normal gain."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, k, generator=generator)
    gain = torch.exp(spread * torch.randn(rows, k // 16, generator=generator)).repeat_interleave(16, -1)
    x = (x * gain).bfloat16()
    quantized = quantize_nvfp4(x, 2688 / x.abs().max().float())
    return decode_blocks(quantized.codes, quantized.block_scale, torch.float32)


def by_integers(a: Tensor, b: Tensor) -> list[list[int]]:
    """Return the products in units of 2^-20, by Python's integers."""
    left, right = ([[int(v * 1024) for v in row] for row in side.tolist()] for side in (a, b))
    return [
        [math.sumprod(x, y) if hasattr(math, "sumprod") else sum(map(int.__mul__, x, y)) for y in right]
        for x in left
    ]


def way_of(a: Tensor, b: Tensor, sums: Tensor | None = None) -> str:
    """Return the one way of a product, which has the values of integers where it says that it is exact."""
    products = exact_products(Side(a), Side(b), sums)
    (way,) = products.ways
    assert products.ways[way] == len(a) * len(b)
    assert products.exact == (way != ROUNDED)
    if products.exact:
        assert products.values.mul(2.0**20).tolist() == by_integers(a, b)
    return way


def test_small_sums_are_certified_by_norms() -> None:
    assert way_of(operand(5, 128, 1), operand(7, 128, 2)) == BY_NORMS


def test_a_sum_of_magnitudes_certifies_what_norms_leave_open() -> None:
    """Long rows whose elements do not meet: the norms' product is far above the sum."""
    a, b = torch.zeros(2, 4096), torch.zeros(3, 4096)
    a[:, :2048:2], b[:, 1:2048:2] = 6.0 * 448, 6.0 * 448
    a[:, 4000:], b[:, 4000:] = 2.0**-5, 2.0**-5
    assert way_of(a, b, certificate.magnitude_sums(a, b)) == BY_SUMS
    assert way_of(a, b) != BY_SUMS


@pytest.mark.parametrize("k", [1024, 2000, 4096])
def test_long_sums_are_added_in_pieces(k: int) -> None:
    a, b = operand(4, k, 3), operand(5, k, 4)
    left, right = Side(a), Side(b)
    assert left.largest * right.largest >= 2.0**24
    assert way_of(a, b) == IN_PIECES


def test_spread_blocks_are_added_in_float64() -> None:
    assert way_of(operand(4, 512, 5, 1.5), operand(5, 512, 6, 1.5)) == IN_FLOAT64


def test_what_float64_rounds_is_said_to_be() -> None:
    """An even step of 2^-10 each, sums of 2^53 steps and one more."""
    a, b = torch.full((1, 64), 2.0**20), torch.full((1, 64), 2.0**20)
    a[0, 0] = b[0, 0] = 2.0**-10
    assert way_of(a, b) == ROUNDED


def test_values_off_the_unit_grid_have_norms_too() -> None:
    """Squares of 1e-30 are no float32: norms of nothing would certify everything."""
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randn(3, 256, generator=generator) * 1e-30 for _ in range(2))
    assert Side(a).largest > 2.0**20
    products = exact_products(Side(a), Side(b))
    assert list(products.ways) == [IN_FLOAT64]
    assert torch.equal(products.values, a.double() @ b.double().T)


@pytest.mark.parametrize("power", [-100.0, 100.0])
def test_few_bits_far_from_1_are_no_float32(power: float) -> None:
    """Their products are too small or too large for it, though one step each."""
    a, b = (torch.full((2, 64), 2.0**power, dtype=torch.float64) for _ in range(2))
    products = exact_products(Side(a), Side(b))
    assert not products.ways.keys() & {BY_NORMS, BY_SUMS, IN_PIECES}
    assert products.values.tolist() == [[64 * 2.0 ** (2 * power)] * 2] * 2


def test_nan_stays_in_its_row_and_keeps_the_others_in_float32() -> None:
    a, b = operand(4, 64, 8), operand(5, 64, 9)
    a[1, :16] = torch.nan
    products = exact_products(Side(a), Side(b))
    assert list(products.ways) == [BY_NORMS]
    assert bool(products.values[1].isnan().all())
    rest = [0, 2, 3]
    assert products.values[rest].mul(2.0**20).tolist() == by_integers(a[rest], b)


def test_nothing_is_made_in_float32_where_that_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "is_full_float32", lambda: False)
    assert way_of(operand(3, 64, 1), operand(3, 64, 2)) == IN_FLOAT64


def test_a_wrong_certificate_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: norms ten times too small certify what float32 rounds."""
    a, b = operand(8, 4096, 10, 0.7), operand(8, 4096, 11, 0.7)
    norms = Side._norms_of
    monkeypatch.setattr(Side, "_norms_of", lambda side, values: norms(side, values) * 0.01)
    wrong = exact_products(Side(a), Side(b))
    assert wrong.exact
    assert not torch.equal(wrong.values, a.double() @ b.double().T)


def test_a_piece_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from reference import exact_products as module

    pieces = module._pieces
    a, b = operand(4, 4096, 3), operand(5, 4096, 4)
    monkeypatch.setattr(module, "_pieces", lambda x, y: pieces(x, y)[:-1])
    with pytest.raises(AssertionError):
        way_of(a, b)


def test_no_rows() -> None:
    products = exact_products(Side(torch.zeros(0, 32)), Side(torch.zeros(4, 32)))
    assert products.values.shape == (0, 4)
    assert not products.ways

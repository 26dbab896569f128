"""Epilogues: the contract's, and others that kernels are found to have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness.identification.gemm import judged_epilogue
from reference.bounds import Stores, epilogue
from reference.epilogue import CASTS, CONTRACT, HELD, ROUNDINGS, Epilogue, rounded

TYPES = (torch.bfloat16, torch.float16)


def numbers() -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(20_000, generator=draw) * torch.exp(4 * torch.randn(20_000, generator=draw))


@pytest.mark.parametrize("dtype", [*TYPES, torch.float32])
def test_the_contract_is_that_of_the_bound(dtype: torch.dtype) -> None:
    """Accumulator times alpha in float32, rounded once."""
    x, alpha = numbers().double(), torch.tensor(1.2345678)
    assert torch.equal(CONTRACT(x, alpha, dtype), epilogue(x, alpha, dtype))
    assert torch.equal(CONTRACT(x, None, dtype), epilogue(x, None, dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_each_rounding_is_what_it_says(dtype: torch.dtype) -> None:
    """Towards and away from zero bracket the number; to nearest even of float64 is that of torch where one rounding is."""
    x = numbers()
    down, up = (rounded(x, dtype, name) for name in ("toward zero", "away from zero"))
    assert bool((down.double().abs() <= x.double().abs()).all())
    assert bool((up.double().abs() >= x.double().abs()).all())
    exact = x.to(dtype).isfinite() & (x.to(dtype).double() == x.double())
    assert torch.equal(down[exact], up[exact])
    assert torch.equal(rounded(x.double(), dtype, ROUNDINGS[0]), x.to(dtype))
    tie = torch.tensor([1 + 2.0**-8, -1 - 2.0**-8, 1 + 3 * 2.0**-8])
    assert rounded(tie, torch.bfloat16, ROUNDINGS[3]).tolist() == [1.0078125, -1.0078125, 1.015625]
    assert rounded(tie, torch.bfloat16, ROUNDINGS[0]).tolist() == [1.0, -1.0, 1.015625]


def test_what_is_not_finite_or_overflows() -> None:
    """Toward zero nothing finite becomes infinite; NaN and infinities stay."""
    x = torch.tensor([3.4e38, -3.4e38, torch.inf, -torch.inf, torch.nan, -0.0])
    nearest = [str(value) for value in rounded(x, torch.bfloat16, "to nearest even").tolist()]
    assert nearest == ["inf", "-inf", "inf", "-inf", "nan", "-0.0"]
    assert bool(rounded(x, torch.bfloat16, "toward zero")[:2].isfinite().all())
    assert rounded(x, torch.bfloat16, "away from zero").tolist()[:2] == [torch.inf, -torch.inf]


def test_each_cast_is_what_it_says() -> None:
    """Rounded before alpha, with alpha rounded, or both; fused where the product is next to a tie."""
    x, alpha = torch.tensor(1.00390637, dtype=torch.float64), torch.tensor(1.7777777)
    wide, short = x.float(), alpha.bfloat16().float()
    wanted = [
        (wide * alpha),
        (wide.bfloat16().float() * alpha),
        (wide * short),
        (wide.bfloat16().float() * short),
    ]
    for cast, value in zip(CASTS, wanted, strict=True):
        assert Epilogue(cast)(x, alpha, torch.bfloat16) == value.bfloat16()
    # Above the middle of two bfloat16 numbers by less than float32 keeps: rounded first, it is the middle, and then even.
    x, alpha = (
        torch.tensor(1 + 2.0**-12, dtype=torch.float64),
        torch.tensor(1 + 2.0**-8 - 2.0**-12 + 2.0**-23),
    )
    product = x * alpha.double()
    middle = 1 + 2.0**-8
    assert (float(x.float() * alpha) == middle) == (float(product.float()) == middle)
    stored = Epilogue(fused=True)(x, alpha, torch.bfloat16)
    assert float(stored) == (1.0 if float(product) <= middle else 1.0078125)


def test_a_factor_of_a_row_and_alpha_are_rounded_once_or_each() -> None:
    """Two kernels round the product of the same alpha and factor to neighbours in bfloat16; each has one stored value."""
    alpha, factor = torch.tensor([[1.7682218551635742]]), torch.tensor([[1.5178728103637695]])
    once = Epilogue("before alpha, alpha rounded to bfloat16")
    each = replace(once, each=True)
    assert [float(way.joined(alpha, factor)) for way in (once, each)] == [2.6875, 2.671875]
    assert float(CONTRACT.joined(alpha, factor)) == float(alpha * factor)
    sums = torch.ones(1, 1, dtype=torch.float64)
    for way, stored in ((once, 2.6875), (each, 2.671875)):
        low, high = Stores(way, alpha, torch.bfloat16, factor).range(sums)
        assert float(low) == float(high) == stored


def test_sums_that_are_held_times_a_power_of_two_are_rounded_there() -> None:
    """Marlin's: below 2^-7 they are bfloat16's subnormals, multiples of 2^-14; what an H200 stored of such a sum."""
    held = Epilogue("before alpha, alpha rounded to bfloat16", each=True, held=-119)
    sums, alpha = torch.tensor([-0.005767430122432415, 0.0078125, 1 / 3]), torch.tensor(0.0001354217529296875)
    plain = replace(held, held=0)(sums, alpha, torch.bfloat16)
    stored = held(sums, alpha, torch.bfloat16)
    assert [float(value) for value in (plain[0], stored[0])] == [-7.82310962677002e-07, -7.7858567237854e-07]
    assert torch.equal(plain[1:], stored[1:])


def test_a_declared_power_of_two_reaches_the_epilogue_that_is_judged_by() -> None:
    """Of a candidate whose GEMM can be called, too."""
    cast = "before alpha, alpha rounded to bfloat16"
    assert judged_epilogue(Epilogue(cast), (f"cast: {cast}", HELD)) == Epilogue(cast, held=-119)
    assert judged_epilogue(Epilogue(cast), (f"cast: {cast}",)) == Epilogue(cast)

"""One instruction, on numbers that can be followed by hand."""

from __future__ import annotations

import pytest
import torch

from reference.matrix_units import FMA, UNITS, Operand, add_products, all_pairs

F16, F8, FP4 = UNITS["sm_90 f16"], UNITS["sm_90 f8"], UNITS["sm_100 mxf4nvf4"]


def one(unit, a, b, total=0.0, number_format="bfloat16", a_scales=None, b_scales=None) -> float:
    """The accumulator after one instruction on a few products; the rest is zero."""
    sides = []
    for values, scales in ((a, a_scales), (b, b_scales)):
        row = torch.zeros(1, unit.k, dtype=torch.float64)
        row[0, : len(values)] = torch.tensor(values, dtype=torch.float64)
        sides.append(Operand.of(row, number_format, None if scales is None else torch.tensor([scales])))
    return float(add_products(unit, *sides, torch.tensor([total], dtype=torch.float32)))


def test_what_lies_below_the_window_of_the_largest_term_is_cut():
    assert one(F16, [1, 2.0**-25], [1, 1], -1.0) == 2.0**-25
    assert one(F16, [1, 2.0**-26], [1, 1], -1.0) == 0
    assert one(F16, [1, 1.5 * 2.0**-25], [1, 1], -1.0) == 2.0**-25  # part of a term
    assert one(F16, [1, -1.5 * 2.0**-25], [1, 1], -1.0) == -(2.0**-25)  # toward zero


def test_a_product_counts_with_the_sum_of_its_operands_exponents():
    """1.5 * 1.5 = 2.25 is aligned as if it were below 2: its bits reach one further down than those of 2 * 1.125."""
    assert one(F16, [1.5, 2.0**-25, -1.5], [1.5, 1, 1.5]) == 2.0**-25
    assert one(F16, [2, 2.0**-25, -2], [1.125, 1, 1.125]) == 0


def test_the_accumulator_is_aligned_too():
    assert one(F16, [1], [2.0**-24], 2.0) == 2.0
    assert one(F16, [2.0**24, -(2.0**24)], [1, 1], 0.25) == 0


def test_the_sum_is_truncated_to_float32_or_to_13_bits():
    assert one(F16, [1, 2.0**-24], [1, 1]) == 1
    assert one(F16, [-1, -(2.0**-24)], [1, 1]) == -1
    assert one(F8, [1, 2.0**-9], [1, 2.0**-4], number_format="e4m3") == 1 + 2.0**-13
    assert one(F8, [1, 2.0**-9], [1, 2.0**-5], number_format="e4m3") == 1


def test_a_group_is_added_exactly_at_the_exponent_of_its_scales():
    ones = [1.0] * 4
    assert one(FP4, [6, -6, 0.5], [6, 6, 0.5], number_format="e2m1", a_scales=ones, b_scales=ones) == 0.25
    # The second group's scales are 2^-18 in all; 36 of the accumulator are aligned at 2^5: nothing is lost yet.
    small = [1.0, 2.0**-9, 1.0, 1.0]
    a = [0.0] * 16 + [0.5]
    assert one(FP4, a, a, 2.0**15, number_format="e2m1", a_scales=small, b_scales=small) == 2.0**15
    assert one(FP4, a, a, 1.0, number_format="e2m1", a_scales=small, b_scales=small) == 1 + 2.0**-20


def test_nan_has_one_pattern_and_zero_one_sign():
    for a, b, total in (
        ([torch.inf], [0.0], 0.0),
        ([1.0], [1.0], torch.nan),
        ([torch.inf], [1.0], -torch.inf),
    ):
        sides = [Operand.of(torch.tensor([x], dtype=torch.float64), "bfloat16") for x in (a, b)]
        out = add_products(F16, *sides, torch.tensor([total]))
        assert out.view(torch.int32).item() == 0x7FFFFFFF
    sides = [Operand.of(torch.tensor([x]), "bfloat16") for x in ([-1.0], [0.0])]
    assert add_products(F16, *sides, torch.tensor([-0.0])).view(torch.int32).item() == 0
    assert one(F16, [2.0**100], [2.0**100]) == torch.inf
    assert one(F16, [2.0**100, 1], [-(2.0**100), 1]) == -torch.inf


def test_fma_rounds_the_exact_sum_once():
    draw = torch.Generator().manual_seed(0)
    a, b, total = (torch.randn(100_000, generator=draw) for _ in "abc")
    far = total * torch.exp2(torch.randint(-40, 40, total.shape, generator=draw))
    sides = [Operand.of(x[:, None], "float32") for x in (a, b)]
    # Neither a float64 sum nor two float32 roundings may decide: 24 + 24 bits and a far summand need more than 53.
    wanted = torch.tensor(
        [_fused(*(float(x[i]) for x in (a, b, far))) for i in range(2_000)], dtype=torch.float32
    )
    assert torch.equal(add_products(FMA, *sides, far)[:2_000], wanted)


def _fused(a: float, b: float, c: float) -> float:
    from fractions import Fraction

    exact = Fraction(a) * Fraction(b) + Fraction(c)
    near = torch.tensor(
        float(exact), dtype=torch.float32
    )  # within a unit; the nearest of three is looked for
    around = [torch.nextafter(near, torch.tensor(x)) for x in (-torch.inf, torch.inf)]
    return min(
        (float(x) for x in (near, *around)),
        key=lambda x: (abs(Fraction(x) - exact), torch.tensor(x).view(torch.int32).item() & 1),
    )


@pytest.mark.parametrize("name", ["sm_90 f16", "sm_100 mxf4nvf4"])
def test_all_pairs_are_the_products_of_rows_with_rows(name):
    unit, draw = UNITS[name], torch.Generator().manual_seed(1)
    number_format = "e2m1" if unit.group else "bfloat16"
    a, b = (
        Operand.of(
            torch.randint(-3, 4, (rows, unit.k), generator=draw).double(),
            number_format,
            torch.rand(rows, 4, generator=draw).to(torch.float8_e4m3fn) if unit.group else None,
        )
        for rows in (5, 7)
    )
    terms = all_pairs(unit, a, b)
    assert terms.values.shape == (5, 7, 4 if unit.group else 16)
    if unit.group:
        products = torch.einsum("mgk,ngk->mng", *(x.elements.values.view(-1, 4, 16) for x in (a, b)))
        wanted = products * a.scales.values[:, None] * b.scales.values[None]
    else:
        wanted = a.elements.values[:, None] * b.elements.values[None]
    assert torch.equal(terms.values, wanted)


def test_a_unit_of_groups_needs_block_scales():
    side = Operand.of(torch.ones(1, 64), "e2m1")
    with pytest.raises(ValueError, match="needs block scales of both operands"):
        add_products(FP4, side, side, torch.zeros(1))

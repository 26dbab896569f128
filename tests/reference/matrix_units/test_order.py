"""The sum over k: one pass, parts, promotions; a matrix product equals its dot products."""

from __future__ import annotations

import pytest
import torch

from reference.matrix_units import (
    FMA,
    ONE_PASS,
    UNITS,
    KOrder,
    Operand,
    add_products,
    dot,
    even_cuts,
    matmul,
)

F16 = UNITS["sm_90 f16"]


def operands(k: int, *, rows: int = 40, seed: int = 0) -> tuple[Operand, Operand]:
    draw = torch.Generator().manual_seed(seed)
    a, b = (
        Operand.of((torch.randn(rows, k, generator=draw) * 3).exp().bfloat16() * sign, "bfloat16")
        for sign in (1, torch.randint(0, 2, (rows, k), generator=draw) * 2 - 1)
    )
    return a, b


def test_cuts_are_whole_tiles_the_larger_parts_first():
    assert even_cuts(1024, 2) == (512,)
    assert even_cuts(320, 2) == (192,)
    assert even_cuts(100, 2) == (64,)
    assert even_cuts(64, 4) == ()
    assert even_cuts(512, 3, 128) == (256, 384)


def test_one_pass_is_one_instruction_after_the_other():
    a, b = operands(48)
    total = torch.zeros(40)
    for at in (0, 16, 32):
        total = add_products(F16, a.along_k(at, at + 16), b.along_k(at, at + 16), total)
    assert torch.equal(dot(F16, a, b), total)


def test_parts_are_summed_alone_and_then_added_in_order_or_as_a_tree():
    a, b = operands(160)
    cuts = (32, 64, 96)
    parts = [dot(F16, a.along_k(x, y), b.along_k(x, y)) for x, y in ((0, 32), (32, 64), (64, 96), (96, 160))]
    assert torch.equal(dot(F16, a, b, KOrder(cuts)), ((parts[0] + parts[1]) + parts[2]) + parts[3])
    tree = dot(F16, a, b, KOrder(cuts, pairwise=True))
    assert torch.equal(tree, (parts[0] + parts[1]) + (parts[2] + parts[3]))
    rounded = [part.bfloat16().float() for part in parts]
    wanted = ((rounded[0] + rounded[1]) + rounded[2]) + rounded[3]
    assert torch.equal(dot(F16, a, b, KOrder(cuts, partial="bfloat16")), wanted)


def test_a_promoted_accumulator_begins_again():
    a, b = operands(80)
    parts = [dot(F16, a.along_k(x, y), b.along_k(x, y)) for x, y in ((0, 32), (32, 64), (64, 80))]
    assert torch.equal(dot(F16, a, b, KOrder(promote=32)), (parts[0] + parts[1]) + parts[2])


def test_orders_differ_where_sums_are_inexact():
    a, b = operands(512, rows=400)
    found = [
        dot(F16, a, b, order) for order in (ONE_PASS, KOrder(even_cuts(512, 2)), KOrder(promote=128))
    ] + [dot(FMA, a, b)]
    for i, x in enumerate(found):
        for y in found[:i]:
            assert (x != y).float().mean() > 0.05


@pytest.mark.parametrize("name", UNITS)
def test_a_matrix_product_holds_the_dot_products_of_all_pairs(name):
    unit, draw = UNITS[name], torch.Generator().manual_seed(2)
    k = unit.k * 2 + 32
    blocks = k // 16 if unit.group else k // 32
    scaled = unit.group or "mx" in name
    a, b = (
        Operand.of(
            torch.randint(-6, 7, (rows, k), generator=draw).double(),
            "e4m3",
            torch.exp2(torch.randint(-9, 9, (rows, blocks), generator=draw)) if scaled else None,
        )
        for rows in (5, 3)
    )
    pairs = [(i, j) for i in range(5) for j in range(3)]
    wanted = dot(
        unit, *(x.at(torch.tensor(rows)) for x, rows in zip((a, b), zip(*pairs, strict=True), strict=True))
    )
    assert torch.equal(matmul(unit, a, b).flatten(), wanted)
    assert matmul(unit, a.at(slice(0, 0)), b).shape == (0, 3)

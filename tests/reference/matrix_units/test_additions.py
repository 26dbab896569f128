"""float32 FMA by plain additions has the bits of its definition, and is not used where it may have others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference.matrix_units import KOrder, Operand, additions, matmul
from reference.matrix_units.step import add_products
from reference.matrix_units.unit import EXACT, FMA


def drawn(rows: int, k: int, bits: int = 12) -> Operand:
    """Return values of so many significant bits, of exponents far apart, and zeros of both signs."""
    draw = torch.Generator().manual_seed(rows)
    mantissa = torch.randint(-(2**bits) + 1, 2**bits, (rows, k), generator=draw).double()
    values = mantissa * torch.exp2(torch.randint(-20, 20, (rows, k), generator=draw).double())
    values[:, ::7] = -0.0
    return Operand.of(values, "float32")


@pytest.mark.parametrize(
    "order",
    [KOrder(), KOrder(promote=64), KOrder(promote=128), KOrder((64, 128)), KOrder((128,), lanes=2), KOrder((64,), reverse=True)],
    ids=str,
)  # fmt: skip
def test_the_bits_are_those_of_one_instruction_after_the_other(order: KOrder) -> None:
    a, b = drawn(9, 200), drawn(7, 200)
    assert additions.suffice(FMA, a, b)
    fast = matmul(FMA, a, b, order)
    assert torch.equal(fast.view(torch.int32), matmul(FMA, a, b, order, in_torch=True).view(torch.int32))
    assert not torch.equal(fast, matmul(EXACT, a, b, order))


def test_blocks_of_rows_and_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = drawn(9, 200), drawn(7, 200)
    whole = matmul(FMA, a, b)
    monkeypatch.setitem(additions._ELEMENTS, "cpu", 15)
    assert torch.equal(matmul(FMA, a, b), whole)
    for rows in (0, 3):
        assert matmul(FMA, a.at(slice(rows)), b.at(slice(0))).shape == (rows, 0)
        assert matmul(FMA, a.at(slice(0)), b.at(slice(rows))).shape == (0, rows)


@pytest.mark.parametrize(
    ("a", "b", "enough"),
    [
        (4095.0, 4095.0, True),
        (4097.0, 1.0, False),  # 13 bits
        (torch.inf, 1.0, False),
        (torch.nan, 1.0, False),
        (2.0**63, 2.0**62, True),
        (2.0**63, 2.0**63, False),  # two of these are 2^127, and more would be infinite
        (2.0**-52, 2.0**-52, True),
        (2.0**-52, 2.0**-53, False),  # 12 bits of these end below the normal numbers
    ],
)
def test_where_they_could_differ_they_are_not_used(a: float, b: float, enough: bool) -> None:
    sides = [Operand.of(torch.tensor([[x, 0.0]]), "float32") for x in (a, b)]
    assert additions.suffice(FMA, *sides) == enough
    assert not additions.suffice(EXACT, *sides)
    step = _stepwise(*sides)
    assert torch.equal(matmul(FMA, *sides)[0, 0].view(torch.int32), step.view(torch.int32))


def _stepwise(a: Operand, b: Operand) -> Tensor:
    total = torch.zeros(1)
    for at in range(a.k):
        total = add_products(FMA, a.along_k(at, at + 1), b.along_k(at, at + 1), total)
    return total[0]

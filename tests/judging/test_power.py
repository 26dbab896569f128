"""Power is asked on a few rows, and means what it means on all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.judging.comparison import accepted, altered_copies, half, roll_rows

NAMES = ["zeros", "x0.5", "rolled rows", "one element zeroed"]


def asked(values: Tensor, wanted: Tensor) -> tuple[list[str], list[int]]:
    """Return the altered copies that element-wise equality with `wanted` accepts, NaN standing for anything, and rows asked."""
    rows: list[int] = []

    def accepts(some: Tensor, part: slice) -> Tensor:
        rows.append(len(some))
        return (some == wanted[part]) | wanted[part].isnan()

    return [name for name, copy in altered_copies(values, accepts).items() if copy()], rows


@pytest.mark.parametrize("rows", [1, 7, 8, 100, 1001])
def test_a_few_rows_settle_what_they_reject(rows: int) -> None:
    values = torch.rand(rows, 16, generator=torch.Generator().manual_seed(rows)) + 1
    found, of = asked(values, values)
    assert not found
    assert max(of[:-1]) <= 15
    assert of[-1] == rows  # the output with one element zeroed is asked as a whole


@pytest.mark.parametrize("row", [0, 1, 50, 99])
def test_one_row_that_rejects_is_enough_wherever_it_lies(row: int) -> None:
    """Rows that are not among the few are asked before a copy counts as accepted."""
    values = torch.rand(100, 16, generator=torch.Generator().manual_seed(1)) + 1
    wanted = torch.full_like(values, torch.nan)
    wanted[row, 3] = values[row, 3]
    assert asked(values, wanted)[0] == []


def test_what_accepts_anything_accepts_every_copy() -> None:
    values = torch.rand(100, 16) + 1
    found, of = asked(values, torch.full_like(values, torch.nan))
    assert found == NAMES
    assert of.count(100) >= len(NAMES)


def test_zeros_have_no_power() -> None:
    zeros = torch.zeros(40, 16)
    assert asked(zeros, zeros)[0] == NAMES


@pytest.mark.parametrize("rows", [0, 1, 2, 9, 33])
@pytest.mark.parametrize("part", [slice(None), slice(None, None, 4), slice(3, None)])
def test_some_rows_of_a_rolled_copy_are_those_of_the_whole(rows: int, part: slice) -> None:
    values = torch.arange(rows * 5).view(rows, 5)
    whole = values.roll(1, 0) if rows > 1 else values.roll(1, -1)
    assert torch.equal(roll_rows(values, part), whole[part])


def test_a_share_that_must_be_close_is_asked_of_all_rows() -> None:
    """A criterion that makes one number of all elements may reject a few rows and accept the whole, as it was compared."""
    values = torch.rand(800, 16, generator=torch.Generator().manual_seed(2)) + 1

    def accepts(some: Tensor, part: slice) -> Tensor:
        close = some == values[part]
        return torch.full_like(close, bool(close.double().mean() >= 0.99))

    assert [name for name, copy in altered_copies(values, accepts).items() if copy()] == [
        "one element zeroed"
    ]


def test_nothing_is_made_of_rows_that_are_not_asked() -> None:
    made: list[int] = []
    values = torch.rand(1000, 16) + 1

    def altered(part: slice) -> Tensor:
        made.append(len(values[part]))
        return half(values[part])

    assert not accepted(lambda some, part: some == values[part], altered, len(values))
    assert made == [8]

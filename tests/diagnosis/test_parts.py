"""Words, places, factors, choices: the small parts of a diagnosis."""

from __future__ import annotations

import pytest
import torch

from harness.diagnosis.cases.observation import bytes_of
from harness.diagnosis.hypotheses.choices import Choices
from harness.diagnosis.hypotheses.fingerprints import nice
from harness.diagnosis.telling.numbers import numbers, percent, strength_words
from harness.diagnosis.telling.place import place


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3], "3"),
        ([3, 4], "3 and 4"),
        ([3, 4, 5, 6, 7], "3 to 7"),
        ([0, 1, 2, 5], "0 to 2 and 5"),
        ([0, 4, 8, 12], "0, 4, ... 12 (every 4th)"),
        ([], "none"),
    ],
)
def test_numbers(values, words) -> None:
    assert numbers(values) == words


def test_a_place_names_experts_rows_and_blocks_and_says_everywhere_only_where_it_is() -> None:
    valid = torch.ones(8, 32, dtype=torch.bool)
    mask = torch.zeros(8, 32, 4, 17, dtype=torch.bool)
    mask[3:, :, 2] = True
    assert place(mask, valid)["words"] == "experts 3 to 7, all rows, block 2"
    assert place(mask, valid)["blocks"] == [2]
    mask[:] = True
    assert place(mask, valid)["words"] == "everywhere"
    mask[0, 5] = False
    assert place(mask, valid)["words"].startswith("all experts, rows 0 to 31")


@pytest.mark.parametrize(
    ("measured", "meant"), [(0.06252, 0.0625), (1.998, 2.0), (0.3333, 1 / 3), (5.99, 6.0), (-0.5, -0.5)]
)
def test_a_measured_factor_is_read_as_the_simple_number_it_is_near(measured, meant) -> None:
    assert nice(measured) == pytest.approx(meant)


def test_strengths_in_words() -> None:
    assert strength_words(0.0625) == "x0.0625 = 1/16"
    assert strength_words(1.1) == "x1.1 = 11/10"
    assert strength_words(64) == "64"
    assert strength_words(None) == ""


def test_a_share_is_100_percent_only_where_it_is_all() -> None:
    assert [percent(s) for s in (1.0, 0.99999, 0.5, 0.0001)] == ["100 %", "99.9 %", "50 %", "under 0.1 %"]


def test_choices_take_the_illegal_row_and_the_row_that_its_values_come_from() -> None:
    right = torch.arange(2 * 4 * 6, dtype=torch.float32).view(2, 4, 6)
    got = right.clone()
    got[1, 2, [0, 3]] = right[0, 1, [0, 3]]
    choices = Choices(got != right, got, right)
    rows = [(e, r) for e in range(2) for r in range(4)]
    assert choices.random() == 0
    assert choices.sample(rows, 2) == [(1, 2), (0, 1)]
    assert sorted(choices.sample(range(6), 2)) == [0, 3]


def test_choices_go_through_every_option_and_end() -> None:
    choices = Choices(torch.ones(1, 1, 1, dtype=torch.bool))
    seen = []
    while True:
        seen.append((choices.randrange(3), choices.randrange(2)))
        if not choices.advance():
            break
    assert sorted(seen) == [(a, b) for a in range(3) for b in range(2)]


def test_where_nothing_showed_a_race_does_not_strike() -> None:
    assert Choices(None).random() > 0.99


@pytest.mark.parametrize("stride", [0, 1, 7])
def test_a_single_element_has_bytes_whatever_its_stride(stride: int) -> None:
    """torch calls it contiguous and refuses to view it as bytes."""
    one = torch.arange(8.0).as_strided((1,), (stride,))
    assert bytes_of(one).tolist() == [0, 0, 0, 0]

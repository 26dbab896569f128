"""What a GEMM that takes bfloat16 as it is gets from the stage before: bit for bit, or within what float32 leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.judging.quantize import QuantizerInput
from harness.judging.unquantized import judge_unquantized
from harness.problems.rows import Rows
from reference.moe import activate

ROWS = Rows.valid([3, 4], 6, "cpu")


def gate_up() -> Tensor:
    return (torch.randn(7, 64, generator=torch.Generator().manual_seed(2)) * 3).bfloat16()


def test_tokens_are_judged_bit_for_bit() -> None:
    x = gate_up()
    assert judge_unquantized("quantize", QuantizerInput.known(x), x, ROWS).illegal == 0
    wrong = x.clone()
    wrong[2, 5] = torch.nextafter(wrong[2, 5].float(), torch.tensor(9.0)).bfloat16() * 1.01
    found = judge_unquantized("quantize", QuantizerInput.known(x), wrong, ROWS)
    assert (found.illegal, found.place) == (1, {"expert": 0, "row": 2, "col": 5})
    assert found.accepted_altered == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_activation_has_one_value_almost_everywhere(dtype: torch.dtype) -> None:
    """ACT-1: float32 arithmetic may move it across a rounding boundary of the type, and no further."""
    x = gate_up().to(dtype)
    given = QuantizerInput.activated(x, "silu", dtype)
    right = activate(x, "silu", dtype)
    found = judge_unquantized("activation", given, right, ROWS)
    assert (found.illegal, found.accepted_altered) == (0, [])
    assert found.judged["one value"] > 0.97 * right.numel()
    up = torch.nextafter(right, torch.full_like(right, torch.inf))
    assert judge_unquantized("activation", given, up, ROWS).illegal > 0.97 * right.numel()


def test_nan_is_expected_where_it_goes_in() -> None:
    x = gate_up()
    x[1, 3] = torch.nan
    given = QuantizerInput.activated(x, "silu")
    right = activate(x, "silu")
    assert judge_unquantized("activation", given, right, ROWS).illegal == 0
    found = judge_unquantized("activation", given, right.nan_to_num(0.0), ROWS)
    assert (found.illegal, found.message.count("legal is NaN")) == (1, 1)


def test_nothing_is_compared_without_a_row() -> None:
    x = gate_up()[:0]
    none = Rows.valid([0, 0], 6, "cpu")
    assert judge_unquantized("quantize", QuantizerInput.known(x), x, none).compared == 0

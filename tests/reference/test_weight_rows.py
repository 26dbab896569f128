"""Orders of rows against their formulas, and against FlashInfer's own functions."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from reference.weight_rows import CUTEDSL_TURN, TRTLLM_TURN, in_turns, of_turns, shuffled, unshuffled


def numbered(rows: int, *lead: int) -> Tensor:
    """Matrices of two columns, every number another one."""
    count = rows * 2
    for extent in lead:
        count *= extent
    return torch.arange(count).view(*lead, rows, 2)


@pytest.mark.parametrize("rows", [32, 128, 416])
def test_every_32_rows_change_places_as_the_formula_says(rows: int) -> None:
    """LAYOUT-4: row by row, and back."""
    plain = numbered(rows)
    there = shuffled(plain)
    for row in range(rows):
        place = row // 32 * 32 + row % 4 * 8 + row % 32 // 4
        assert torch.equal(there[place], plain[row])
    assert torch.equal(unshuffled(there), plain)


@pytest.mark.parametrize("turn", [TRTLLM_TURN, 16, CUTEDSL_TURN])
def test_rows_take_turns(turn: int) -> None:
    """LAYOUT-5: row by row, and back."""
    up, gate = numbered(128), -numbered(128) - 1
    both = in_turns(up, gate, turn)
    for row in range(128):
        place = row // turn * 2 * turn + row % turn
        assert torch.equal(both[place], up[row])
        assert torch.equal(both[place + turn], gate[row])
    assert all(map(torch.equal, of_turns(both, turn), (up, gate)))


def test_each_expert_is_a_matrix_of_its_own() -> None:
    """LAYOUT-4, LAYOUT-5: leading axes and any dtype."""
    plain = numbered(128, 3).to(torch.uint8)
    assert torch.equal(shuffled(plain)[1], shuffled(plain[1]))
    assert torch.equal(in_turns(plain, plain, 64)[2], in_turns(plain[2], plain[2], 64))
    assert torch.equal(unshuffled(shuffled(plain)), plain)


def test_rows_that_fill_no_group_are_refused() -> None:
    """LAYOUT-4, LAYOUT-5."""
    with pytest.raises(ValueError, match="unshuffled: rows must be a multiple of 32, got 48"):
        unshuffled(numbered(48))
    with pytest.raises(ValueError, match="of_turns: rows must be a multiple of 128, got 192"):
        of_turns(numbered(192), CUTEDSL_TURN)


@pytest.mark.flashinfer
@pytest.mark.filterwarnings("ignore")  # what FlashInfer and its dependencies warn of on import is not ours
@pytest.mark.parametrize("rows", [128, 384])
def test_flashinfer_shuffles_and_reorders_rows_the_same_way(rows: int) -> None:
    """LAYOUT-4, LAYOUT-5: the indices that both engines prepare their weights with."""
    pytest.importorskip("flashinfer", reason="flashinfer-python is not installed")
    core = importlib.import_module("flashinfer.fused_moe.core")
    plain = numbered(rows).to(torch.uint8)
    for scales in (None, 16):
        down = core.get_w2_permute_indices_with_cache({}, plain, 128, num_elts_per_sf=scales)
        assert torch.equal(plain[down], shuffled(plain))
        gated = core._maybe_get_cached_w3_w1_permute_indices({}, plain, 128, num_elts_per_sf=scales)
        assert torch.equal(plain[gated], shuffled(in_turns(*plain.chunk(2), TRTLLM_TURN)))

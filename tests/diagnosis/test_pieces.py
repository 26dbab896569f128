"""Wide and narrow weights in one diagnosis: rows are cut in pieces, and what is said is what uncut rows say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.eager import Eager
from harness.diagnosis.cases import pieces as cut
from harness.faults.named import plant
from harness.running.judge import Judge

WIDE = "2x4x512x16:4,4:normal:3:whole_layer"  # w1 has 32 rows of 288 bytes, w2 512 rows of 9
FAR = "4x4x7168x16:1*4:normal:18:whole_layer"
LATE = "rows 0 to 31, columns 2048 to 3583"


class CutColumns(Eager):
    """LOAD: from a column on, w1's bytes are zero."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def load_experts(self, checkpoint: Any, experts: range) -> dict[str, Tensor]:
        found = super().load_experts(checkpoint, experts)
        found["w1"][..., self.column :] = 0
        return found


def told(candidate: Any) -> list[dict[str, Any]]:
    """Return the diagnosis of LOAD but for its pattern, which tells of pieces nothing of where their rows are from."""
    found = Judge(candidate).diagnose("LOAD", WIDE, "the command")
    assert found
    return [{name: said for name, said in finding.items() if name != "pattern"} for finding in found]


MORE = (
    "last_rows_missing",
    "experts_rolled",
    "scales_not_swizzled",
    "gate_up_swapped",
    "experts_never_written",
)


@pytest.mark.parametrize(
    "fault", ["gate_up_interleaved", *(pytest.param(name, marks=pytest.mark.long) for name in MORE)]
)
def test_pieces_change_nothing_of_what_is_said(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told(plant("eager", fault))
    monkeypatch.setattr(cut, "_WASTED", 0)
    assert told(plant("eager", fault)) == whole


def test_a_fault_of_some_columns_is_placed_though_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "_WASTED", 0)
    (found,) = Judge(CutColumns(128)).diagnose("LOAD", WIDE, "the command")
    assert not found["fault"], "nothing that the catalog has"
    assert "rows 0 to 31, columns 128 to 255" in found["pattern"][0]


@pytest.mark.long
def test_weights_of_the_widest_layers_are_diagnosed() -> None:
    """A worker took 20 GB for it, and was ended."""
    (found,) = Judge(CutColumns(2048)).diagnose("LOAD", FAR, "the command")
    assert not found["fault"]
    assert LATE in found["pattern"][0]


def test_pieces_of_a_row_lie_side_by_side() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 9, shape, generator=generator) for shape in ((2, 3, 10), (2, 5, 4))]
    width, pieces = (
        4,
        cut.Pieces(
            torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 1, 2] * 3 + [0] * 5)
        ),
    )
    mask = cut.joined(parts, width) > 4
    rows = pieces.of_rows(mask.unsqueeze(2))
    assert rows.shape == (2, 8, 1, 12)
    for start, part in ((0, parts[0]), (3, parts[1])):
        assert torch.equal(rows[:, start : start + part.shape[1], 0, : part.shape[2]], part > 4)
    assert torch.equal(pieces.of_rows(mask.any(-1)), rows.any(-1).any(-1))
    assert torch.equal(pieces.any(mask.any(-1)), rows.any(-1).any(-1)[:, pieces.row])


def test_only_much_padding_is_cut() -> None:
    assert cut.pieces_of([(32, 288), (512, 9)], 2) == (288, None)
    width, pieces = cut.pieces_of([(32, 4032), (7168, 9)], 4)
    assert width == 9
    assert pieces is not None
    assert len(pieces.row) == 32 * 448 + 7168

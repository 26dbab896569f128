"""What a row of the first GEMM took over from another row is read off the layer's output, and off nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.physical import Physical
from harness.diagnosis.cases.collection import layer_cases
from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.observation import MASKED_MOE, Recorder
from harness.diagnosis.cases.repetition import bounds_of, run_rule_once
from harness.diagnosis.hypotheses.taken_over import ThroughLayer
from harness.identification.measure import measure

ROW = (1, 7)


class RowChanged(Physical):
    """`physical` with one row of each layer's first GEMM changed."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change
        self._first = True

    def masked_moe(self, *arguments: Any, **named: Any) -> Any:
        self._first = True
        return super().masked_moe(*arguments, **named)

    def masked_grouped_gemm(self, *arguments: Any, **named: Any) -> Any:
        super().masked_grouped_gemm(*arguments, **named)
        if self._first:
            rows = arguments[4].permute(2, 0, 1)
            rows[ROW] = self._change(rows)
        self._first = False


def case_of(change: Callable[[Tensor], Tensor], problem: str) -> LayerCase:
    recorder = Recorder(RowChanged(change))
    known = measure(recorder.candidate, probe=False).known
    assert run_rule_once(recorder, known, "MOE", problem)
    calls = [call for call in recorder.calls if call.stage == MASKED_MOE]
    return layer_cases(calls, bounds_of(recorder.candidate, known))[0]


@pytest.mark.parametrize(
    "problem",
    [
        "4x32x128x128:26,21,32,18:normal:5",
        "4x32x128x128:26,21,32,18:grid:6",
        "4x32x128x128:26,21,32,18:normal:7:relu2",
        "3x16x256x128:16,16,9:normal:8",
    ],
)
@pytest.mark.parametrize("share", [3, 2])
def test_the_source_and_the_columns_are_found(problem: str, share: int) -> None:
    rng = random.Random(f"{problem} {share}")
    source = (0, rng.randrange(9))
    taken: list[int] = []

    def take(rows: Tensor) -> Tensor:
        taken[:] = taken or rng.sample(range(rows.shape[2]), rows.shape[2] // share)
        changed = rows[ROW].clone()
        changed[taken] = rows[source][taken]
        return changed

    through = ThroughLayer(case_of(take, problem))
    assert through.sources(ROW)[0] == source
    columns = through.columns(ROW, source).tolist()
    assert sorted(columns) == list(range(len(columns)))
    right = len(set(columns[: len(taken)]) & set(taken)) / len(taken)
    assert right > 0.6  # where silu or relu leaves nothing, it cannot be seen which gate or up was there


@pytest.mark.parametrize("problem", ["4x32x128x128:26,21,32,18:normal:5", "2x16x64x128:16,16:normal:9"])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[ROW][torch.randperm(rows.shape[2], generator=torch.Generator().manual_seed(1))],
        lambda rows: rows[ROW].flip(0),
        lambda rows: rows[ROW] * 1.5,
        lambda rows: (rows[ROW] + rows[1, 3]) / 2,
        lambda rows: rows[1, :3].mean(0),
        lambda rows: torch.full_like(rows[ROW], torch.nan),
    ],
    ids=["shuffled", "mirrored", "scaled", "mean of two rows", "mean of others", "NaN"],
)
def test_what_no_row_explains_has_no_source(change: Callable[[Tensor], Tensor], problem: str) -> None:
    assert ThroughLayer(case_of(change, problem)).sources(ROW) == []

"""A diagnosis asks of a GEMM's elements what the judge asks: another order of the same unit in some tiles is right."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from harness.diagnosis.cases.legality import legal
from harness.diagnosis.cases.observation import MASKED_GEMM, Recorder
from harness.diagnosis.cases.repetition import bounds_of, run_rule_once
from harness.judging.context import Known
from reference.bounds import Accumulator
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from tests.identification.summing import SplitsLongRows

ORDER = "sm_90 f16"
PROBLEM = "1x70x256x64:70:spread:1:float32_out"
ZERO = 3  # a row of the first tile, which is added in the known order


class LosesARow(SplitsLongRows):
    """GEMM: one row is zero; the rows of the second tile are right, in another order."""

    def masked_grouped_gemm(
        self, a: Any, a_scale: Any, b: Any, b_scale: Any, out: Tensor, masked_m: Any, alpha: Any
    ) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        out[ZERO] = 0


def illegal_rows(candidate: SplitsLongRows, order: str) -> list[int]:
    """Return the rows that a diagnosis takes for wrong where an order is known."""
    measured = Accumulator(24, 16, measured=True)
    known = Known(Arithmetic("fast", candidate.reciprocal), measured, Summation.of(order))
    recorder = Recorder(candidate)
    run_rule_once(recorder, known, "GEMM", PROBLEM)
    call, *_ = (
        call for call in recorder.calls if call.stage == MASKED_GEMM
    )  # judging may ask again at this shape
    wrong = ~legal(call, bounds_of(candidate, known))
    return wrong[0].flatten(1).any(-1).nonzero().flatten().tolist()


@pytest.mark.parametrize(("kind", "wrong"), [(SplitsLongRows, []), (LosesARow, [ZERO])])
def test_a_tile_in_another_order_is_right_beside_what_is_wrong(
    kind: type[SplitsLongRows], wrong: list[int]
) -> None:
    assert illegal_rows(kind(ORDER), ORDER) == wrong


def test_a_tile_of_another_unit_is_wrong() -> None:
    assert {ZERO, 64, 69} <= {*illegal_rows(LosesARow(ORDER), "exact 32")}

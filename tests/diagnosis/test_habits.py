"""What a candidate leaves where it need not write is learned from its padding, and the models leave the same."""

from __future__ import annotations

import pytest
import torch

from harness.candidates.physical import Physical
from harness.diagnosis.cases.habits import Habits, learned_habits
from harness.diagnosis.cases.models import models
from harness.diagnosis.cases.observation import MASKED_GEMM, Recorder, name_calls
from harness.diagnosis.cases.repetition import run_rule_once
from harness.diagnosis.cases.views import seen, valid
from harness.faults.named import load_named
from harness.identification.measure import measure
from harness.judging.context import Known


def observed(rule: str, stage: str, problem: str = "2x16x64x64:16,9:normal:1"):
    recorder = Recorder(load_named("physical"))
    run_rule_once(recorder, measure(recorder.candidate, probe=False).known, rule, problem)
    name_calls(recorder.calls)
    return next(call for call in recorder.calls if call.stage == stage)


@pytest.mark.parametrize(("tail", "value"), [("zeros", 0.0), ("nan", torch.nan), ("before", None)])
def test_the_tail_rows_of_a_gemm(tail: str, value: float | None) -> None:
    call = observed("GEMM", MASKED_GEMM)
    before = call.arguments["out"].fill_(13).permute(2, 0, 1)
    rows = call.output.permute(2, 0, 1)
    rows[1, 9:] = before[1, 9:] if value is None else value
    assert learned_habits(call, valid(call), seen(call)) == (Habits(tail=tail), False)


def test_rows_that_a_fault_about_counts_has_computed_are_no_habit() -> None:
    """One padding row holds its product, the others zeros: zeros are the habit."""
    call = observed("GEMM", MASKED_GEMM)
    product = seen(call).clone()
    call.output.permute(2, 0, 1)[1, 10:] = 0
    assert learned_habits(call, valid(call), seen(call), product)[0].tail == "zeros"


@pytest.mark.parametrize("fill", [0x00, 0x7F])
def test_a_quantizers_constant_padding_is_learned(fill: int) -> None:
    call = observed("QUANT", "quantize_grouped")
    elements, counted = seen(call).clone(), valid(call)
    elements[~counted] = fill & 0xF
    elements[..., -1][~counted] = fill
    assert learned_habits(call, counted, elements) == (Habits(fill=fill), False)


def test_padding_of_random_bytes_may_hold_anything() -> None:
    call = observed("QUANT", "quantize_grouped")
    elements, counted = seen(call).clone(), valid(call)
    noise = torch.Generator().manual_seed(1)
    elements[~counted] = torch.randint(0, 16, elements[~counted].shape, generator=noise, dtype=torch.uint8)
    assert learned_habits(call, counted, elements) == (Habits(), True)


@pytest.mark.parametrize(("store_rows", "written"), [(1, 9), (4, 12), (128, 16)])
def test_a_model_stores_tiles_of_as_many_rows_as_the_candidate_declares(
    store_rows: int, written: int
) -> None:
    call = observed("GEMM", MASKED_GEMM)
    model = models(Known.declared(Physical.traits).arithmetic)[0]
    model.store_rows = store_rows
    out = torch.full_like(call.output, 13.0)
    model.masked_grouped_gemm(**{**call.arguments, "out": out})
    rows = (out.permute(2, 0, 1)[1] != 13).any(-1)
    assert int(rows.sum()) == written
    assert bool(rows[:written].all())

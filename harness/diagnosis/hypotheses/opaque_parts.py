"""Faults that only some blocks of a quantization, or some rows of the weights, have: found in a few rows, tried on all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.case import Case
from harness.diagnosis.hypotheses.blocks import MUCH_NEARER, blocks_of_row
from harness.diagnosis.hypotheses.hypothesis import Failed, Hypothesis, unharmed
from harness.diagnosis.hypotheses.layers import NEAR, failing_outputs, judge_variants, relative
from harness.diagnosis.hypotheses.planted_layer import Planted, is_second, quantized_in
from harness.diagnosis.hypotheses.stage_calls import Score
from harness.diagnosis.hypotheses.weight_rows import weights_with_fault

_ASKED = 4  # failing rows that are asked for their blocks
_HOPELESS = 1  # of them, without an answer


def score_blocks(cases: list[Case], hypothesis: Hypothesis) -> Score | None:
    """Test a fault of blocks that only some blocks of the rows have; None where it cannot be planted or finds no blocks.

    The blocks are looked for in single failing rows, and then tried on all rows.
    """
    result = Score(hypothesis, failing_outputs(cases))
    try:
        for number in result.of:
            case = cases[number]
            variants = _block_variants(case, hypothesis)
            if not variants:
                return None
            judge_variants(result, number, case, variants)
    except Failed:
        return None
    return result


def score_weight_rows(cases: list[Case], hypothesis: Hypothesis) -> Score | None:
    """Test a fault of the weights that only some of their rows have; None where it cannot be planted or no rows explain much."""
    result = Score(hypothesis, failing_outputs(cases), chosen=True)
    try:
        for number in result.of:
            case = cases[number]
            found = weights_with_fault(case, hypothesis)
            if found is None:
                return None
            arguments, result.inside = found
            with unharmed(case.call):
                judge_variants(result, number, case, [case.model.masked_moe(**arguments).unsqueeze(2)])
    except Failed:
        return None
    return result


def _block_variants(case: Case, hypothesis: Hypothesis) -> list[Tensor]:
    """Return outputs with the fault in the blocks of a few telling rows, until they explain the rows that tell most."""
    right = relative(case.seen, case.healthy)
    nearest, failing = right, case.illegal.any(-1).any(-1)
    variants: list[Tensor] = []
    tried: set[tuple[bool, ...]] = set()
    asked = torch.zeros_like(failing)
    union: tuple[Tensor, Tensor] | None = None
    for _ in range(_ASKED):
        unexplained = failing & ~asked & ((nearest > NEAR) | (nearest > MUCH_NEARER * right))
        telling = nearest.nan_to_num(0, posinf=0).masked_fill(~unexplained, 0)
        if not bool(telling.any()):
            break
        expert, row = divmod(int(telling.argmax()), telling.shape[1])
        asked[expert, row] = True
        found = blocks_of_row(case, hypothesis, expert, row)
        if found is None:
            if not variants and int(asked.sum()) >= _HOPELESS:
                break
            continue
        union = found if union is None else (union[0] | found[0], union[1] | found[1])
        for first, second in (
            union,
            found,
        ):  # a row that the fault does not change in some block does not show that block
            none = torch.zeros_like(first), torch.zeros_like(second)
            for masks in ((first, second), (first, none[1]), (none[0], second)):
                key = tuple(torch.cat(masks).tolist())
                if key not in tried and any(key):
                    tried.add(key)
                    variants.append(_with_blocks(case, hypothesis, *masks))
                    nearest = torch.minimum(nearest, relative(case.seen, variants[-1]))
    return variants


def _with_blocks(case: Case, hypothesis: Hypothesis, first: Tensor, second: Tensor) -> Tensor:
    """Return the layer's output as elements with the fault in some blocks of each quantization only."""
    healthy = getattr(case, "healthy_stages", None) if not bool(first.any()) else None

    def merge(stage: str, number: int, right: Any, faulty: Any) -> Any:
        return quantized_in(second if is_second(stage, number) else first, right, faulty)

    planted = Planted(case.model, hypothesis, hypothesis.parameters(), None, merge, healthy=healthy)
    with unharmed(case.call):
        return planted.masked_moe(**case.call.arguments).unsqueeze(2)


def has_blocks(hypothesis: Hypothesis) -> bool:
    """Return whether a fault can sit in single blocks of a quantization."""
    return hypothesis.fault.unit == "block" and all("quantize" in stage for stage in hypothesis.fault.stages)

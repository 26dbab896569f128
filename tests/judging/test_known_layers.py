"""An opaque layer at production widths: where its summation is known, one value is legal and small errors are seen."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from torch import Tensor

from harness.candidates.controls.catalog import OpaqueLayer
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.identification.measure import measure
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.rules.layer import judge_opaque

INSIDE = {"eager": Eager, "physical": Physical}
NEAR = ["1x8x4096x1024:8:normal:3"]
FAR = [
    f"2x8x{hidden}x{inter}:5,2:{data}:{seed}"
    for hidden in (4096, 7168)
    for inter in (1024, 2048)
    for data, seeds in (("normal", range(6)), ("spread", range(6, 10)))
    for seed in seeds
]


def one_per_cent(out: Tensor) -> Tensor:
    """Scale one expert."""
    changed = out.clone()
    changed[0] = (out[0] * 1.01).bfloat16()
    return changed


def neighbour(out: Tensor) -> Tensor:
    """Return the row of a neighbour in one row."""
    changed = out.clone()
    changed[0, 0] = out[0, 1]
    return changed


@cache
def layer(name: str) -> tuple[OpaqueLayer, Known]:
    """Return a right layer and what is found about it."""
    candidate = OpaqueLayer(name, INSIDE[name]())
    return candidate, measure(candidate).known


def judged(candidate: Any, problem: str, known: Known) -> None:
    """Judge a right layer and three wrong ones."""
    ctx = Context(candidate, parse_problem(problem), known)
    out = ctx.moe()
    found = judge_opaque(ctx, out)
    assert found.illegal == 0, found.message
    assert not found.accepted_altered
    one_value = sum(count for words, count in found.judged.items() if words.startswith("one value"))
    assert (
        one_value >= found.compared - ctx.problem.hidden
    )  # a row may have a code next to a rounding boundary
    for wrong in (one_per_cent(out), neighbour(out)):
        assert judge_opaque(ctx, wrong).illegal > 0, problem
    alpha = ctx.tensors.w1_alpha.clone()
    ctx.tensors.w1_alpha[0] *= 1.02
    off = ctx.moe()
    ctx.tensors.w1_alpha.copy_(alpha)
    assert judge_opaque(ctx, off).illegal > 0, problem


@pytest.mark.parametrize("problem", NEAR)
@pytest.mark.parametrize("name", INSIDE)
def test_small_errors_of_a_wide_layer_are_seen(name: str, problem: str) -> None:
    """MOE-2: x1.01 of one expert, a row of the neighbour, an alpha 2 % off."""
    candidate, known = layer(name)
    judged(candidate, problem, known)


@pytest.mark.long
@pytest.mark.parametrize("problem", FAR)
@pytest.mark.parametrize("name", INSIDE)
def test_small_errors_of_the_widest_layers_are_seen(name: str, problem: str) -> None:
    """MOE-2: the same at hidden 4,096 and 7,168, inter 1,024 and 2,048."""
    candidate, known = layer(name)
    judged(candidate, problem, known)

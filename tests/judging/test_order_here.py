"""A model holds for the shapes on which it was found: elsewhere the bound judges what no order explains, and no fault hides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from harness.identification.gemm import judged_epilogue
from harness.judging import context as judged_by
from harness.judging.predicted import orders_of
from harness.problems.problem import parse_problem
from harness.rules import find_rules
from reference.bounds import Accumulator
from reference.epilogue import Epilogue
from reference.legal import Arithmetic
from reference.matrix_units import KOrder, Summation, matmul
from tests.identification import summing
from tests.identification.modes import CutAnywhere, Known
from tests.identification.test_summation import judged

UNKNOWN = "derived bound, order not known at this shape"


class Thirds(Known):
    """Uneven parts in an order that no family has, from k 512 on."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums."""
        left, right = self.summation.operand(*a), self.summation.operand(*b)
        if left.k < 512:
            return super().sums(expert, a, b)
        ends = ((0, 32), (32, 208), (208, left.k))
        first, second, third = (
            matmul(self.summation.unit, left.along_k(*at), right.along_k(*at)) for at in ends
        )
        return (second + third) + first


class ThirdsWithout(Thirds):
    """The same, without one product of the last row."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums without that product."""
        values = a[0].clone()
        values[-1, values[-1].nonzero()[-1:].flatten()] = 0
        return super().sums(expert, (values, a[1]), b)


PROBLEM = "1x20x512x64:20:spread:1:float32_out"


def test_an_order_of_no_family_is_judged_by_the_bound_and_said() -> None:
    """Where the candidate does not declare the order: it was found elsewhere."""
    found = judged(Thirds("sm_90 f16"), PROBLEM, "sm_90 f16")
    assert found.illegal == 0, found.message
    assert sum(count for words, count in found.judged.items() if words.startswith(UNKNOWN)) > 0
    assert sum(found.judged.values()) == found.compared


def test_a_declared_order_is_held_to_at_every_shape() -> None:
    """Nothing is asked again."""
    candidate = Thirds("sm_90 f16")
    candidate.traits = replace(candidate.traits, summation="sm_90 f16")
    assert judged(candidate, PROBLEM, "sm_90 f16").illegal > 0


@pytest.mark.parametrize("kind", [ThirdsWithout, summing.DropsAProduct])
def test_a_fault_is_no_order(kind: Any) -> None:
    """Sums that are exact in every order come out otherwise on the probe; or the problem's own are outside the bound."""
    assert judged(kind("sm_90 f16"), "1x20x512x64:20:normal:1:float32_out", "sm_90 f16").illegal > 0


@pytest.mark.parametrize(("unit", "step"), [("sm_90 f16", 16), ("sm_90 f16", 64), ("sm_100 mxf4nvf4", 64)])
def test_two_parts_are_explained_wherever_k_is_cut(unit: str, step: int) -> None:
    """Tile by tile, at a multiple of the k tile of the kernel."""
    found = judged(CutAnywhere(unit, step, 64), "2x70x512x64:70,9:spread:3:float32_out", unit)
    assert found.illegal == 0, found.message
    assert not [words for words in found.judged if words.startswith(UNKNOWN)]
    assert [words for words in found.judged if "cut at k" in words]


def test_every_order_of_a_summation_can_be_declared() -> None:
    """Text to order and back."""
    for order in orders_of(Summation("sm_90 f16"), 1024):
        assert Summation.of(str(order)) == order
    modes = "sm_90 f16; lanes 2; from 576; lanes 2; stream; from 4096; varies"
    assert str(Summation.of(modes)) == modes
    assert Summation.of(modes).at(4096) is None
    assert Summation.of(modes).order(128) == KOrder(lanes=2)
    with pytest.raises(ValueError, match="not known at k 8192"):
        Summation.of(modes).order(8192)


@pytest.mark.parametrize(
    ("epilogue", "deviation"),
    [
        (Epilogue("before alpha"), "cast: before alpha"),
        (Epilogue(rounding="toward zero"), "rounding of the output: toward zero"),
        (Epilogue(fused=True), ""),
    ],
)
def test_an_epilogue_is_judged_as_it_is_declared_or_free(epilogue: Epilogue, deviation: str) -> None:
    """A cast before alpha and a rounding toward zero where they are declared; a product that is not rounded always."""
    problem = "2x20x256x128:20,7:normal:1"
    found = {}
    for deviations in ((), (deviation,) if deviation else ()):
        candidate = Known("sm_90 f16", epilogue, deviations=deviations)
        accumulator = Accumulator(24, 16, measured=True, epilogue=judged_epilogue(epilogue, deviations))
        known = judged_by.Known(
            Arithmetic("fast", candidate.reciprocal), accumulator, Summation.of("sm_90 f16")
        )
        (found[deviations],) = find_rules(["GEMM"])[0].function()(
            judged_by.Context(candidate, parse_problem(problem), known)
        )
    assert found[candidate.traits.deviations].illegal == 0
    assert (found[()].illegal > 0) == bool(deviation)

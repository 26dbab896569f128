"""How a GEMM adds is found through the GEMM itself; then every bit is demanded, of right kernels without a false alarm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.candidates.controls.catalog import CONTROLS
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.identification.summation import find_summation
from harness.judging.comparison import Comparison
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.rules import find_rules
from harness.verdict import UsageError
from reference.bounds import Accumulator
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from tests.identification import summing

SUMMATIONS = (
    "sm_100 mxf4nvf4",
    "sm_100 mxf4nvf4; parts 2; tile 128",
    "sm_100 mxf4nvf4; parts 4; tile 256; pairwise",
    "sm_90 f16",
    "sm_90 f16; promote 128",
    "sm_90 f16; length 1024",
    "exact 32; parts 3",
    "exact",
)
MEASURED = Accumulator(24, 16, measured=True)


def judged(candidate: Any, problem: str, summation: str) -> Comparison:
    """Return the comparison of GEMM on one problem, by a known summation."""
    known = Known(Arithmetic("fast", candidate.reciprocal), MEASURED, Summation.of(summation))
    (found,) = find_rules(["GEMM"])[0].function()(Context(candidate, parse_problem(problem), known))
    return found


def test_a_declaration_is_confirmed_or_what_is_found_is_demanded() -> None:
    """What a class inherits says nothing of a GEMM of its own."""
    assert str(find_summation(Eager())[0]) == "exact"
    assert str(find_summation(Physical())[0]) == "exact 64"
    candidate = summing.Summing("sm_100 mxf4nvf4", declares=True)
    assert str(find_summation(candidate)[0]) == "sm_100 mxf4nvf4"
    candidate.summation = Summation.of("sm_100 mxf4nvf4; parts 2")
    found, words = find_summation(candidate)
    assert str(found) == "sm_100 mxf4nvf4; parts 2"
    assert words.startswith(
        "declared as sm_100 mxf4nvf4, but the probes at k 64, 256, 1,024, 1,600, 7,168 have other bits; "
        "sm_100 mxf4nvf4; parts 2: gives every bit of the probes at k 64, 256, 1,024, 1,600, 7,168; one value is legal"
    )


def test_a_text_that_names_none_is_refused() -> None:
    """With what is known."""
    candidate = Physical()
    candidate.traits = replace(Physical.traits, summation="sm_90 f17")
    with pytest.raises(
        UsageError, match=r"Traits: a summation begins with a unit: 'sm_80 f16', .* got 'sm_90 f17'"
    ):
        find_summation(candidate)
    for text, said in (("fma; parts 0", "got 'parts 0'"), ("exact 513", "N up to 512, got 'exact 513'")):
        with pytest.raises(ValueError, match=said):
            Summation.of(text)


@pytest.mark.parametrize("name", ["reversed_accumulation", "pairwise_tree", "aligned_to_26_bits"])
def test_what_no_model_describes_is_not_demanded(name: str) -> None:
    """And the words say who judges then."""
    control = CONTROLS[name]()
    control.traits = replace(control.traits, summation="")
    found, words = find_summation(control)
    assert found is None
    assert words.endswith("the bound judges")


@pytest.mark.parametrize("name", ["stream_k", "atomic_additions", "chunk_of_16"])
def test_what_varies_is_not_asked(name: str) -> None:
    """By place, by call, or because the candidate says so."""
    said = (None, "not asked for: the candidate says that it varies; the bound judges")
    assert find_summation(CONTROLS[name]()) == said


@pytest.mark.parametrize("text", SUMMATIONS)
@pytest.mark.parametrize("problem", ["2x70x512x128:70,5:normal:1:float32_out", "1x9x2048x64:9:spread:2"])
def test_a_right_kernel_has_the_one_legal_value_everywhere(text: str, problem: str) -> None:
    """Every element by the certificate or by the model, none by an interval."""
    found = judged(summing.Summing(text), problem, text)
    assert found.illegal == 0, found.message
    assert not [words for words in found.judged if words.startswith("derived bound")]
    assert sum(found.judged.values()) == found.compared > 0


@pytest.mark.parametrize("k", [256, pytest.param(512, marks=pytest.mark.long)])
def test_another_order_in_some_tiles_or_at_some_k_is_right(k: int) -> None:
    """The record says in how many elements, and which order it was."""
    found = judged(summing.SplitsLongRows("sm_90 f16"), f"1x70x{k}x128:70:spread:1:float32_out", "sm_90 f16")
    assert found.illegal == 0, found.message
    assert found.judged["one value, added in another order: sm_90 f16; parts 2"] > 0


FAULTS = [
    ("DropsAProduct", "sm_90 f16", "normal"),
    ("HalfPartial", "sm_90 f16", "normal"),
    ("CutsEarlier", "sm_90 f16", "spread"),  # of normal data no product has bits so far below the sum
    ("DropsAProduct", "sm_100 mxf4nvf4", "normal"),
    ("HalfPartial", "sm_100 mxf4nvf4", "normal"),
]


def missed(kind: str, text: str, data: str, seeds: range) -> list[str]:
    """Return the problems at k 7,168 with float32 outputs on which a fault is not found."""
    problems = [f"1x8x7168x16:8:{data}:{seed}:float32_out" for seed in seeds]
    candidate = getattr(summing, kind)(text, declares=True)  # a declared order is held to at every shape
    return [problem for problem in problems if not judged(candidate, problem, text).illegal]


@pytest.mark.parametrize(("kind", "text", "data"), FAULTS[3:])
def test_faults_inside_the_bound_are_found(kind: str, text: str, data: str) -> None:
    """Where the bound alone accepts most of them."""
    assert not missed(kind, text, data, range(1))


@pytest.mark.long
@pytest.mark.parametrize(("kind", "text", "data"), FAULTS)
def test_ninety_nine_in_a_hundred_problems_find_them(kind: str, text: str, data: str) -> None:
    """The figure that docs/numerics.md gives."""
    assert len(missed(kind, text, data, range(100))) <= 1

"""What an opaque layer computes is found through masked_moe alone, and judges it with power."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch

from harness.candidates.controls.catalog import CONTROLS, OpaqueLayer
from harness.emulation.activations import ACTIVATIONS
from harness.identification import layer_call as call
from harness.identification.activation import find_activation
from harness.identification.layer import asked_of
from harness.identification.measure import Measured, measure
from harness.judging.context import Context
from harness.problems.problem import parse_problem
from harness.records.finding import Finding
from harness.rules.layer import judge_opaque
from reference.matrix_units import Summation
from reference.quantizer_formulas import CODES, REAL, SCALES
from tests.identification import activating
from tests.identification.layers import FAST, FIVE, How, Layer, SplitsManyRows
from tests.judging.test_known_layers import judged, neighbour, one_per_cent

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@cache
def measured(how: How) -> Measured:
    """Return what is found about a layer that declares nothing."""
    return measure(Layer(how))


def found(how: How) -> dict[tuple[str, str], Finding]:
    """Return the findings by stage and point."""
    return {(f.stage.removeprefix("masked_moe, "), f.point): f for f in measured(how).findings}


def names(finding: Finding) -> tuple[str, ...]:
    """Return everything that was not told apart."""
    return (finding.found, *finding.alike)


def identified(how: How, hidden: torch.dtype = BF16) -> None:
    """Check every point of a layer that is in the family, and quantizes its activation in a type."""
    findings, known = found(how), measured(how).known
    assert not [str(finding) for finding in findings.values() if finding.deviates or not finding.found]
    for stage in ("tokens", "activation"):
        assert how.formulas[0] in names(findings[stage, "block scale"])
        assert how.formulas[1] in names(findings[stage, "codes"])
        assert findings[stage, "ties"].found == "to even"
    types = {"gemm1": how.gemm1, "hidden": hidden}
    for point, dtype in types.items():
        assert findings["activation", point].found == {F32: "float32", BF16: "bfloat16"}[dtype]
    assert known.unrounded == tuple(point for point, dtype in types.items() if dtype == F32)
    wanted = Summation.of(how.sums)
    assert known.summation is not None
    assert known.summation.name == wanted.name
    for k in (256, 320, 832, 1088, 7168):
        assert known.summation.order(k).cuts == wanted.order(k).cuts


def test_a_layer_is_identified_through_masked_moe_alone() -> None:
    """SwiGLU on float32 accumulators, another association of scale and factor, k split in two; of a unit that is added soon."""
    identified(replace(FIVE["two of these"], sums="exact 64; parts 2; tile 128"))


@pytest.mark.long
@pytest.mark.parametrize("name", FIVE)
def test_five_layers_are_identified(name: str) -> None:
    """One habit each."""
    identified(FIVE[name])


@pytest.mark.long
@pytest.mark.parametrize("name", FIVE)
def test_the_layers_are_judged_with_power_at_production_widths(name: str) -> None:
    """MOE-2: one value nearly everywhere; x1.01 of one expert, a neighbour's row, an alpha 2 % off are seen."""
    judged(Layer(FIVE[name]), "2x8x7168x1024:5,2:normal:1", measured(FIVE[name]).known)


@pytest.mark.parametrize("gemm1", [BF16, F32])
@pytest.mark.parametrize("hidden", [BF16, F32])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_types_between_the_stages_are_found_of_every_right_activation(
    name: str, hidden: torch.dtype, gemm1: torch.dtype
) -> None:
    """However the exponential is computed, and in whatever order."""
    how = How("exact 64", gemm1=gemm1, activation=activating.rounded_to(hidden, name))
    findings = {finding.point: finding for finding in find_activation(asked_of(call.Layer(Layer(how))))}
    names = {F32: "float32", BF16: "bfloat16"}
    found = [findings[point].found for point in ("gemm1", "silu", "hidden", "cast")]
    assert found == [names[gemm1], "float32", names[hidden], "after alpha"]
    assert not [str(finding) for finding in findings.values() if finding.deviates or not finding.found]


WRONG: dict[str, tuple[How, tuple[str, str], str]] = {
    "hidden in float16": (
        How("exact 64", activation=activating.rounded_to(F16)), ("activation", "hidden"), "float16",
    ),
    "silu in bfloat16": (
        How("exact 64", activation=activating.with_silu_in(BF16)), ("activation", "silu"), "bfloat16",
    ),
    "first GEMM in float16": (How("exact 64", gemm1=F16), ("activation", "gemm1"), "float16"),
    "approximate tanh": (
        How("exact 64", activation=activating.by_tanh), ("activation", "exponential"), "off by 2^-",
    ),
    "partial sums in bfloat16": (
        How("exact 64; parts 2; partial bfloat16"), ("gemm2", "partial sums"), "bfloat16",
    ),
    "cast before alpha": (How("exact 64", late=True), ("gemm2", "cast"), "before alpha"),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", WRONG)
def test_what_the_contract_excludes_is_named(name: str) -> None:
    """And the rest of the layer is named as it is, or not known."""
    how, at, wanted = WRONG[name]
    findings = found(how)
    assert findings[at].found.startswith(wanted)
    assert findings[at].deviates
    for stage in ("tokens", "activation"):
        assert FAST[1] in names(findings[stage, "codes"]) or not findings[stage, "codes"].found


@pytest.mark.long
@pytest.mark.parametrize("name", ["gelu", "swapped", "clamped"])
def test_another_function_is_none_of_the_family(name: str) -> None:
    """Nothing of the activation is found, nothing is said to deviate."""
    findings = found(How("exact 64", activation=getattr(activating, name)))
    about = [
        f
        for (stage, point), f in findings.items()
        if stage == "activation" and point in ("silu", "hidden", "gemm1")
    ]
    assert about
    assert not any(finding.found for finding in about)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["opaque_eager", "opaque_shuffled", "opaque_unknown_reciprocals", "aligned_extents"]
)
def test_right_layers_deviate_in_nothing(name: str) -> None:
    """Controls, one with multiples of 64, two experts at least and rows by eight."""
    control = CONTROLS[name]()
    candidate = control if name.startswith("opaque") else OpaqueLayer(name, control)
    findings = measure(candidate).findings
    assert findings
    assert not [str(finding) for finding in findings if finding.deviates]


def test_what_was_declared_and_what_was_found_differ() -> None:
    """What was found judges: a layer that declares float32 between its stages, and rounds, is right."""
    how = How("sm_100 mxf4nvf4")
    found_out = measure(Layer(how, unrounded=("gemm1", "hidden"), far=False))
    known = found_out.known
    assert known.unrounded == ()
    assert str(known.summation) == how.sums
    assert found_out.notes["unrounded"] == "declared gemm1, hidden, found nothing: judged as found"
    ctx = Context(Layer(how), parse_problem("2x8x128x64:5,2:normal:1"), known)
    comparison = judge_opaque(ctx, ctx.moe())
    assert comparison.illegal == 0
    assert comparison.accepted_altered == []


@pytest.mark.long
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_another_order_for_more_rows_is_right(seed: int) -> None:
    """It is counted apart, and 1 % of one expert is still seen."""
    candidate = SplitsManyRows(How("exact 16"))
    known = measure(candidate).known
    assert str(known.summation) == "exact 16"
    ctx = Context(candidate, parse_problem(f"1x40x256x4096:40:spread:{seed}"), known)
    out = ctx.moe()
    comparison = judge_opaque(ctx, out)
    assert comparison.illegal == 0, comparison.message
    assert not comparison.accepted_altered
    assert comparison.judged["bound of the second GEMM: added in another order"] > 0
    assert judge_opaque(ctx, one_per_cent(out)).illegal > 0
    assert judge_opaque(ctx, neighbour(out)).illegal > 0


@pytest.mark.long
def test_an_order_that_changes_with_k_is_demanded_where_it_is_known() -> None:
    """Between two k of the probes that differ the bound judges."""
    how = How("sm_100 mxf4nvf4; from 2048; parts 2")
    known = measured(how).known
    assert str(known.summation) == "sm_100 mxf4nvf4; from 1089; varies; from 7168; parts 2"
    assert found(how)["gemm1", "order along k"].modes == ("sm_100 mxf4nvf4; parts 2 at k 7,168",)
    judged(Layer(how), "2x8x7168x1024:5,2:normal:1", known)


SUMS = (
    "sm_100 mxf4nvf4", "exact 64", "exact 32; parts 2", "sm_100 mxf4nvf4; parts 3", "exact",
    "sm_100 mxf4nvf4; promote 128", "exact 64; length 1024",
)  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_drawn_layers_are_named_and_never_flagged(seed: int) -> None:
    """Orders, formulas, types and activations drawn from the family: each is found, and right on problems of other extents."""
    draw = random.Random(seed)
    scales, codes = ([name for name in names if name != REAL] for names in (SCALES, CODES))
    hidden = draw.choice((BF16, F32))
    how = How(
        draw.choice(SUMS),
        (draw.choice(scales), draw.choice(codes)),
        draw.choice((BF16, F32)),
        activating.rounded_to(hidden, draw.choice(list(ACTIVATIONS))),
    )
    identified(how, hidden)
    for number in range(4):
        extents = f"{draw.choice((128, 256, 512))}x{draw.choice((64, 128, 512))}"
        problem = parse_problem(f"2x8x{extents}:8,5:{draw.choice(('normal', 'spread'))}:{4 * seed + number}")
        ctx = Context(Layer(how), problem, measured(how).known)
        comparison = judge_opaque(ctx, ctx.moe())
        assert comparison.illegal == 0, comparison.message

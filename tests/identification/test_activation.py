"""How an activation is computed is found through the codes of the stage; no right one is said to deviate, no wrong one misnamed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.candidates.controls.catalog import CONTROLS
from harness.candidates.physical import Physical
from harness.emulation.activations import ACTIVATIONS
from harness.identification import activation
from harness.identification.activation import activation_findings, as_quantizer
from harness.records.finding import Finding
from tests.identification import activating
from tests.identification.activating import Activating, rounded_to, with_exponential_off, with_silu_in

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DIVISION = "gate / (1 + exp(-gate)) * up"
FLUSHED = "gate * (1 / (1 + exp(-gate))) * up, subnormals flushed"
HOW = {
    "division": (activation.EXACT, DIVISION),
    "sigmoid": (activation.EXACT, DIVISION),
    "exp2": (activation.APPROXIMATE, DIVISION),
    "reciprocal": (activation.APPROXIMATE, FLUSHED),
    "fused": (activation.EXACT, DIVISION),
}


def found(candidate: object) -> dict[str, Finding]:
    """Return the findings by point."""
    return {finding.point: finding for finding in activation_findings(candidate)}


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_right_activation_is_named(name: str, dtype: torch.dtype) -> None:
    """Types, how exact the exponential is, and the order as far as it shows."""
    findings = found(Activating(rounded_to(dtype, name)))
    assert not any(finding.deviates for finding in findings.values())
    assert findings["silu"].found == "float32"
    assert findings["hidden"].found == {BF16: "bfloat16", F32: "float32"}[dtype]
    exponential, order = HOW[name]
    assert findings["exponential"].found == exponential
    assert order in (findings["order of operations"].found, *findings["order of operations"].alike)


@pytest.mark.parametrize(
    ("how", "order"),
    [
        (activating.up_first, "gate * up / (1 + exp(-gate))"),
        (activating.in_float64, "in a range wider than that of float32"),
        (activating.with_flush, FLUSHED),
    ],
)
def test_an_order_that_shows_is_named(how: activating.Activation, order: str) -> None:
    """By what overflows or vanishes on the way."""
    findings = found(Activating(how))
    assert findings["order of operations"].found == order
    assert findings["exponential"].found == activation.EXACT
    assert not any(finding.deviates for finding in findings.values())


@pytest.mark.parametrize("hidden", [BF16, F32, F16])
@pytest.mark.parametrize("silu", [F32, BF16, F16])
def test_types_that_the_contract_excludes_are_named(silu: torch.dtype, hidden: torch.dtype) -> None:
    """silu in another type than float32, the activation in float16."""
    names = {F32: "float32", BF16: "bfloat16", F16: "float16"}
    findings = found(Activating(with_silu_in(silu, hidden)))
    assert {point: findings[point].found for point in ("silu", "hidden")} == {
        "silu": names[silu],
        "hidden": names[hidden],
    }
    assert not any(findings[point].alike for point in ("silu", "hidden"))
    assert findings["silu"].deviates == (silu != F32)
    assert findings["hidden"].deviates == (hidden == F16)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16, 18])
def test_an_exponential_that_errs_is_named_as_such(bits: int) -> None:
    """By how much, where no type explains it; otherwise as beyond what any kernel may do."""
    findings = found(Activating(with_exponential_off(2.0**-bits)))
    assert findings["exponential"].deviates
    assert findings["exponential"].found.startswith("off by ")
    assert findings["hidden"].found in ("bfloat16", "")


def test_the_approximate_tanh_is_no_exponential_of_the_family() -> None:
    """It errs by 2^-11 of 1, which is much of a small sigmoid."""
    findings = found(Activating(activating.by_tanh))
    assert findings["exponential"].found == "off by 2^-9 and more"
    assert findings["exponential"].deviates
    assert (findings["silu"].found, findings["hidden"].found) == ("", "")


@pytest.mark.parametrize("name", ["gelu", "quick_gelu", "swapped", "clamped"])
def test_another_function_is_none_of_the_family(name: str) -> None:
    """Nothing is found, and nothing is said to deviate: the rules judge it."""
    findings = found(Activating(getattr(activating, name)))
    assert not any(finding.found for finding in findings.values())


FEW = ("eager", "aligned_extents", "silu_by_reciprocal", "reciprocals_below_unknown", "sign_of_zero_dropped")


@pytest.mark.parametrize("name", FEW)
def test_a_few_controls_deviate_in_nothing(name: str) -> None:
    """With multiples of their own, reciprocals off by a unit, an approximate activation."""
    findings = activation_findings(CONTROLS[name]())
    assert len(findings) == 4
    assert not [str(finding) for finding in findings if finding.deviates or not finding.found]


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in CONTROLS if n not in FEW and not n.startswith("opaque")])
def test_no_control_deviates(name: str) -> None:
    """All of them."""
    test_a_few_controls_deviate_in_nothing(name)


def test_the_quantizer_of_the_stage_is_that_of_the_candidate() -> None:
    """On normal numbers, zeros, infinities and NaN, in any shape."""
    candidate, draw = Physical(), torch.Generator().manual_seed(3)
    x = (
        torch.randn(3, 5, 48, generator=draw) * torch.exp2(torch.arange(5.0) * 8 - 20).view(1, -1, 1)
    ).bfloat16()
    x[0, 0, :5] = torch.tensor((0.0, -0.0, float("inf"), -float("inf"), float("nan")))
    gs, masked_m = torch.tensor((1.0, 0.37, 900.0)), torch.tensor((5, 5, 5), dtype=torch.int32)
    codes, scale = as_quantizer(candidate)(x, masked_m, gs)
    wanted: tuple[Tensor, Tensor] = candidate.quantize_grouped(x, masked_m, gs)
    from harness.candidates import layouts

    assert torch.equal(codes, layouts.codes_of(wanted[0]))
    assert torch.equal(scale, layouts.block_scales_of(wanted[1], 5, 3))

"""What a quantizer computes is found through its own calls: formulas by name, mistakes by name, and nothing misnamed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.candidates.controls.catalog import CONTROLS, load_control
from harness.candidates.protocol import Traits, stages_of
from harness.identification.quantizer import as_quantizer, find_quantizer
from harness.records.finding import Finding
from reference.legal import Arithmetic
from tests.identification import quantizers
from tests.identification.quantizers import NOBODYS, PLANTED, RIGHT, Newcomer, Written


def found(candidate: object, traits: Traits = Newcomer.traits) -> dict[str, Finding]:
    answers = find_quantizer("quantize_grouped", as_quantizer(candidate), traits, Arithmetic("fast")).findings
    return {finding.point: finding for finding in answers}


@pytest.mark.parametrize("written", RIGHT, ids=lambda w: f"{w.scale_name}, {w.codes_name}")
def test_a_quantizer_is_named_by_what_it_computes(written: Written) -> None:
    points = found(Newcomer(written))
    assert written.scale_name in (points["block scale"].found, *points["block scale"].alike)
    assert points["codes"].found == written.codes_name
    assert points["codes"].alike == ()
    assert [str(f) for f in points.values() if f.deviates] == []


@pytest.mark.parametrize("written", NOBODYS)
def test_what_no_formula_gives_is_not_named(written: Written) -> None:
    points = found(Newcomer(written))
    assert (points["block scale"].found, points["codes"].found) == ("", "")
    assert "nearest" in points["codes"].evidence


@pytest.mark.parametrize(("broken", "named"), PLANTED.items(), ids=str)
@pytest.mark.parametrize("written", RIGHT[:4], ids=lambda w: w.codes_name)
def test_a_mistake_is_named_whatever_the_formula(
    broken: type[Newcomer], named: str, written: Written
) -> None:
    deviating = [f.named for f in found(broken(written)).values() if f.deviates]
    assert named in deviating
    assert len(deviating) == 1 or broken is quantizers.UnscaledCodes


def test_few_experts_are_asked_in_several_calls_and_large_multiples_are_kept() -> None:
    class Few(Newcomer):
        traits = replace(Newcomer.traits, max_experts=4, m_multiple=128, k_multiple=256)

        def quantize_grouped(self, x, masked_m, global_scale_enc):
            experts = 4 if len(masked_m) > 1 else 1  # a single one is asked about special values
            assert (len(x), x.shape[1] % 128, x.shape[2] % 256) == (experts, 0, 0)
            return super().quantize_grouped(x, masked_m, global_scale_enc)

    assert found(Few(), Few.traits)["codes"].found == "x * (gs / scale)"


QUANTIZING = [name for name in CONTROLS if "quantize_grouped" in stages_of(load_control(name))]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if i % 3 else []) for i, name in enumerate(QUANTIZING)],
)
def test_no_right_control_deviates(name: str) -> None:
    control = load_control(name)
    arithmetic = Arithmetic(control.traits.arithmetic, getattr(control, "reciprocal", None))
    answers = find_quantizer("quantize_grouped", as_quantizer(control), control.traits, arithmetic).findings
    assert [str(f) for f in answers if f.deviates and f.named not in control.traits.deviations] == []

"""Faults around `humming-masked` that take more than one call's output to be named: prepared weights, first calls, races."""

from __future__ import annotations

from typing import Any

import pytest

from harness.faults.named import load_named, plant
from harness.running.judge import Judge
from tests.candidates.humming_stand_in import install
from tests.candidates.test_humming_masked import OnCpu

OF_PREPARE = ("prepared_over_the_next_expert", "prepared_from_memory_not_written", "prepared_in_place")
CONTROL, HUMMING = "control:physical_prepared", "humming-masked"
PROBLEMS = {
    CONTROL: "v2:3x8x64x32:8,0,5:normal:5",
    HUMMING: "v2:4x9x128x128:9,4,0,1:normal:5",
}


def judge_of(base: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> Judge:
    install(monkeypatch)
    candidate: Any = OnCpu() if base == HUMMING else load_named(base)
    return Judge(plant(candidate, fault), threads=1, probe=False)


@pytest.mark.parametrize("base", [CONTROL, HUMMING])
@pytest.mark.parametrize("fault", OF_PREPARE)
def test_a_fault_of_prepare_is_named_by_the_comparisons_that_it_fails(
    base: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(base, fault, monkeypatch)
    outcome = judge.judge("PREPARE", PROBLEMS[base])
    assert outcome.fails
    (found,) = judge.diagnose("PREPARE", PROBLEMS[base], "")
    assert found["fault"] == fault
    assert found["explained"] == 1
    assert found["elements"] == found["of"] == sum(c.illegal for c in outcome.comparisons)
    assert found["where"].keys() == {c.stage for c in outcome.illegal}


def test_comparisons_that_no_fault_of_the_catalog_fails_are_named_by_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Drops(OnCpu):
        """Forgets the first expert's factor every other time."""

        times = 0

        def prepare(self, *given: Any) -> dict[str, Any]:
            made = super().prepare(*given)
            self.times += 1
            if self.times % 2:
                made["weight_scale_2"][0] = 0
            return made

    install(monkeypatch)
    judge = Judge(Drops(), threads=1, probe=False)
    assert judge.judge("PREPARE", PROBLEMS[HUMMING]).fails
    (found,) = judge.diagnose("PREPARE", PROBLEMS[HUMMING], "")
    assert found["fault"] == ""
    assert found["evidence"].startswith("PREPARE fails, but every recorded stage call is legal")


@pytest.mark.parametrize("base", [CONTROL, HUMMING])
def test_what_is_kept_of_an_earlier_problem_is_named(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(base, "alphas_of_first_preparation", monkeypatch)
    assert not judge.judge("GEMM", PROBLEMS[base]).fails
    later = PROBLEMS[base][:-1] + "6"
    assert judge.judge("GEMM", later).fails
    first, *others = judge.diagnose("GEMM", later, "")
    assert first["fault"] == "alphas_of_first_preparation"
    assert first["explained"] == 1
    assert all(other.get("alternative") for other in others)


@pytest.mark.parametrize(
    ("rule", "fault", "problem", "unit"),
    [
        # A factor that is measured on the output explains what a rounding of alpha does, and is not the cause.
        ("GEMM", "alpha_rounded_to_bf16", "v2:4x40x128x128:23,0,0,38:spread:1415", "sm_90 f16"),
        # The only valid row is not chosen by chance: every repetition gives the same bits.
        ("SHAPES", "row_of_previous_call", "v2:1x8x256x128:1:normal:5804", "sm_90 f16"),
        # Its cuts along k are 23, and bits differ from call to call: races come first.
        ("REPEAT", "parts_added_as_they_arrive", "v2:2x8x384x128:7,1:normal:1106", "exact"),
    ],
)
def test_what_looks_like_it_does_not_hide_a_fault(
    rule: str, fault: str, problem: str, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, unit=unit)
    judge = Judge(plant(OnCpu(), fault), threads=1, probe=False)
    assert judge.judge(rule, problem).fails
    assert judge.diagnose(rule, problem, "")[0]["fault"] == fault

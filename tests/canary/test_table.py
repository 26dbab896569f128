"""The table of faults: which lines it has, and what a line says where a candidate raises or cannot carry the fault."""

from __future__ import annotations

import pytest

from harness.canary.table import VARIANTS, measured_line, planned_lines
from harness.faults.fault import all_faults
from harness.records.parts.canary import CanaryLine
from harness.verdict import UsageError


def test_every_fault_and_every_right_variant_has_a_line_of_its_own() -> None:
    lines = planned_lines("eager", [])
    assert [line.name for line in lines if line.kind == "fault"] == list(all_faults())
    assert len({line.name for line in lines}) == len(lines) == len(all_faults()) + len(VARIANTS)
    fp8 = next(line for line in lines if line.name == "fp8_scale_rounded_down")
    assert (fp8.transport, fp8.ranks, fp8.candidate) == ("fp8", 4, "eager+fp8_scale_rounded_down")


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown fault"):
        planned_lines("eager", ["alpha_of_nobody"])


def test_a_line_holds_accuracy_and_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    right = measured_line(CanaryLine("eager", "variant", "eager"), 8)
    monkeypatch.setattr("harness.canary.run.MAX_TOKENS", 64)  # what a broken one says does not end by itself
    broken = measured_line(CanaryLine("experts_rolled", "fault", "eager+experts_rolled"), 8)
    assert (right.accuracy, broken.accuracy) == (1.0, 0.0)
    assert broken.verdict == "FAIL"
    assert not right.error
    assert not broken.error


def test_a_candidate_that_cannot_be_made_is_a_line_with_its_error() -> None:
    line = measured_line(CanaryLine("x", "fault", "no.such.module:Nothing"), 8)
    assert line.error.startswith("not planted: ")
    assert "accuracy" not in line.to_json()

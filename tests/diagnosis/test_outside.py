"""What the catalog does not have is described, never claimed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.diagnosis.telling.describe import NOTHING
from harness.running.judge import Judge

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
try:
    from diagnosis_outside import OUTSIDE
    from diagnosis_outside_arithmetic import ARITHMETIC
finally:
    sys.path.pop(0)

PROBLEM = "3x24x128x64:24,24,11:normal:3"
# Mechanisms that small errors look like, and that nobody may be told of without evidence.
SUSPECTS = (
    "codes_truncated",
    "block_scale_truncated",
    "output_truncated",
    "ties_toward_zero",
    "ties_away_from_zero",
)
FAST = (
    "ACT: exp off by 2^-7",
    "ACT: up of 4 bits",
    "QUANT: cube",
    "GEMM: row 5 zero",
    "GEMM: alpha in float16",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_fault_outside_the_catalog_is_never_explained_in_full(name: str, probe: bool) -> None:
    make, rule = OUTSIDE[name]
    judge = Judge(make(), probe=probe)
    assert any(c.illegal for c in judge.judge(rule, PROBLEM).comparisons)
    found = judge.diagnose(rule, PROBLEM, "")
    left = [f for f in found if not f["fault"]]
    assert len(left) == 1
    assert left[0]["elements"] > 0
    assert left[0]["pattern"]
    named = [f for f in found if f["fault"]]
    assert sum(f["explained"] for f in named if not f.get("alternative")) < 0.9


@pytest.mark.parametrize(
    ("name", "probe"),
    [*((n, False) for n in FAST), *(pytest.param(n, True, marks=pytest.mark.long) for n in ARITHMETIC)],
    indirect=["probe"],
)
def test_small_errors_are_given_no_mechanism_without_evidence(name: str, probe: bool) -> None:
    make, rule = ARITHMETIC[name]
    judge = Judge(make(), probe=probe)
    assert any(c.illegal for c in judge.judge(rule, PROBLEM).comparisons)
    found = judge.diagnose(rule, PROBLEM, "")
    assert found
    for finding in found:
        if finding["fault"]:
            assert finding.get("weak"), finding
            assert "weak" in finding["evidence"]
            assert finding["category"] != "races"
            assert finding["fault"] not in SUSPECTS
        else:
            assert finding["pattern"]
    stories = [f for f in found if f["fault"] and not f.get("alternative")]
    assert len(stories) <= 2, "three mechanisms for one cause"


def test_there_are_a_hundred_faults_outside_the_catalog() -> None:
    assert len(OUTSIDE) + len(ARITHMETIC) >= 100


def test_the_pattern_of_an_unknown_fault_names_its_period() -> None:
    judge = Judge(OUTSIDE["EveryFifthColumnNegated"][0]())
    (finding,) = judge.diagnose("GEMM", "2x16x64x64:16,16:normal:3", "")
    assert finding["title"] == NOTHING
    words = "; ".join(finding["pattern"])
    assert "every 5th" in words
    assert "100 % of the values are -1 times the right ones" in words

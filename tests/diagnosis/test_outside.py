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
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_fault_outside_the_catalog_is_never_explained_in_full(name: str) -> None:
    make, rule = OUTSIDE[name]
    problem = "3x24x128x64:24,24,11:normal:3"
    judge = Judge(make())
    assert any(c.illegal for c in judge.judge(rule, problem).comparisons)
    found = judge.diagnose(rule, problem, "")
    left = [f for f in found if not f["fault"]]
    assert len(left) == 1
    assert left[0]["elements"] > 0
    assert left[0]["pattern"]
    named = [f for f in found if f["fault"]]
    assert sum(f["explained"] for f in named if not f.get("alternative")) < 0.9


def test_the_pattern_of_an_unknown_fault_names_its_period() -> None:
    judge = Judge(OUTSIDE["EveryFifthColumnNegated"][0]())
    (finding,) = judge.diagnose("GEMM", "2x16x64x64:16,16:normal:3", "")
    assert finding["title"] == NOTHING
    words = "; ".join(finding["pattern"])
    assert "every 5th" in words
    assert "100 % of the values are -1 times the right ones" in words

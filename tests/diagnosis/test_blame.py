"""The right sentence or none: no mechanism without evidence, no race where every call gives the same, weak reads as weak."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.rules import find_rules
from harness.running.failure import describe_failure, diagnose_both
from harness.running.judge import Judge
from harness.running.session import InProcess

LARGER = "4x40x128x96:40,1,29,3:normal:7"


@pytest.fixture(scope="module")
def blamed() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield importlib.import_module("blamed")
    finally:
        sys.path.pop(0)


def told(candidate: Any, rule_id: str, shown: str, larger: str) -> str:
    """Return the message of a failure that is shown on one problem and was found on a larger one."""
    session, (rule,) = InProcess(candidate), find_rules([rule_id])
    first, second = (
        describe_failure(rule, "some:Candidate", problem, session.judge(rule_id, problem, 60.0))
        for problem in (shown, larger)
    )
    assert first.kind == second.kind == "illegal"
    assert diagnose_both(first, second, session) == []
    return "\n".join(line for line in first.message.splitlines() if line.startswith("  diagnosis"))


@pytest.mark.parametrize(
    ("name", "rule", "shown"),
    [
        ("UpCutShort", "ACT", "1x1x16x16:1:normal:1"),
        ("SigmoidInBfloat16", "ACT", "1x1x16x16:1:normal:0"),
        ("ExponentBase", "ACT", "4x31x16x16:0*3,30:normal:0"),
    ],
)
def test_a_small_error_of_the_activation_has_no_known_cause(blamed, name: str, rule: str, shown: str) -> None:
    lines = told(getattr(blamed, name)(), rule, shown, LARGER).splitlines()
    assert lines[0].startswith("  diagnosis  no known fault explains it: ")
    assert lines[1].startswith(f"  diagnosis  of {LARGER}: no known fault explains it: ")
    assert "one code too" in lines[1]
    assert len(lines) == 2


def test_alpha_in_float16_is_a_factor_of_each_expert(blamed) -> None:
    message = told(blamed.AlphaThroughHalf(), "GEMM", "1x1x16x16:1:normal:0", "3x24x128x64:24,24,11:normal:3")
    assert message.startswith("  diagnosis  no known fault explains it: ")
    assert "each expert's values are off by a factor of their own, as alpha is one" in message


@pytest.mark.parametrize(
    ("name", "rule", "error"),
    [("FailsAtOneRow", "GEMM", "RuntimeError: launch failed"), ("WrongShape", "QUANT", "")],
)
def test_an_exception_or_a_breach_of_contract_is_its_own_diagnosis(blamed, name, rule, error) -> None:
    (finding,) = Judge(getattr(blamed, name)()).diagnose(rule, LARGER, "")
    assert finding["raised"]
    assert not finding["fault"]
    assert finding["title"].startswith(error or "ContractError: ")


def test_a_row_of_zeros_is_no_proof_of_what_else_would_be_zero(blamed) -> None:
    first = Judge(blamed.OneRowZero()).diagnose("GEMM", LARGER, "")[0]
    assert not first["fault"] or first["weak"]


def test_what_every_repetition_shows_is_no_race(blamed) -> None:
    judge = Judge(blamed.OneRowOfAnother())
    problem = "2x16x64x64:16,9:normal:1"
    found = judge.diagnose("GEMM", problem, "")
    assert found
    assert all(f.get("category") != "races" for f in found)
    assert not judge.judge("REPEAT", problem).illegal, "REPEAT finds that it is always the same"

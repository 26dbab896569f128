"""A stage that raises NotImplementedError: missing where it never does anything else, a failure where it refuses some problems."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.records.record import RunRecord
from harness.rules import find_rules
from harness.running.check import CheckRequest, Progress, run_check
from harness.running.conform import UnknownVerdictError, conformance
from harness.verdict import Verdict

SMALL = dataclasses.replace(PROFILES["quick"], examples=12, experts=4, capacity=40, k=64, n=32)
GEMM_IS_MISSING = (
    "masked_grouped_gemm is not implemented: it raises NotImplementedError('next week') for every problem. "
    "A stage that is missing should not be defined"
)
pytestmark = pytest.mark.usefixtures("in_candidates_folder")


def checked(candidate: str, *rules: str, isolate: bool = False, **request: Any) -> RunRecord:
    record = RunRecord("run", "now", [], profile="quick")
    wanted = CheckRequest(
        [candidate], find_rules(list(rules)), SMALL, isolate=isolate, all_rules=False, **request
    )
    return run_check(wanted, record, Progress())


@pytest.mark.parametrize("isolate", [True, False])
def test_each_rule_of_a_stub_is_unknown_in_one_line_and_the_other_stages_are_judged(isolate: bool) -> None:
    rules = ("QUANT", "GEMM", "PIPELINE", "MOE", "ROUTED", "PAD-ROWS", "WRITES", "REPEAT")
    record = checked("faulty:Stub", *rules, isolate=isolate)
    found = {r.rule: (r.verdict.value, r.reason) for r in record.rules}
    assert found == {
        "QUANT": ("PASS", ""),
        "GEMM": ("UNKNOWN", GEMM_IS_MISSING),
        "PIPELINE": ("UNKNOWN", "masked_grouped_gemm is not implemented: see GEMM"),
        "MOE": (
            "UNKNOWN",
            (
                "masked_moe is not implemented: it raises NotImplementedError for every problem. "
                "A stage that is missing should not be defined"
            ),
        ),
        "ROUTED": (
            "UNKNOWN",
            (
                "routed_moe is not implemented: it raises NotImplementedError('next week') for every problem. "
                "A stage that is missing should not be defined"
            ),
        ),
        "PAD-ROWS": ("PASS", ""),
        "WRITES": ("UNKNOWN", "masked_grouped_gemm is not implemented: see GEMM"),
        "REPEAT": ("PASS", ""),
    }
    assert record.failures == []
    assert all("gemm" not in "".join(r.histograms) for r in record.rules)
    assert (record.verdict, record.reason) == (Verdict.UNKNOWN, f"GEMM on faulty:Stub: {GEMM_IS_MISSING}")
    assert record.candidates[0].missing_stages == [
        "masked_grouped_gemm",
        "masked_moe",
        "routed_moe",
        "prepare",
    ]


def test_a_rule_that_takes_what_stages_there_are_says_so_too() -> None:
    record = checked("faulty:StubOfEverything", "QUANT", "REPEAT", "PAD-OUT")
    assert [r.reason.partition(" is not")[0] for r in record.rules] == ["quantize_grouped"] * 3
    assert record.verdict is Verdict.UNKNOWN
    (alone,) = checked("faulty:StubOfEverything", "REPEAT").rules
    assert (alone.verdict, "raises NotImplementedError for every problem" in alone.reason) == (
        Verdict.UNKNOWN,
        True,
    )


@pytest.mark.parametrize("isolate", [pytest.param(True, marks=pytest.mark.long), False])
def test_a_stage_that_raises_it_for_some_problems_refuses_valid_ones(isolate: bool) -> None:
    record = checked("faulty:NarrowOnly", "QUANT", isolate=isolate)
    (result,) = record.rules
    assert result.verdict is Verdict.FAIL
    (failure,) = result.failures
    assert failure.kind == "rejected"
    assert "NotImplementedError: k " in failure.message
    again = checked("faulty:NarrowOnly", "QUANT", problem=parse_problem(failure.problem))
    assert again.verdict is Verdict.FAIL, "also where only this problem is asked for"


def test_one_problem_of_a_stub_is_unknown() -> None:
    record = checked("faulty:Stub", "GEMM", problem=parse_problem("1x4x32x32:2:normal:1"))
    assert (record.verdict, record.rules[0].reason) == (Verdict.UNKNOWN, GEMM_IS_MISSING)


def test_conformance_of_a_stub_is_unknown(faulty) -> None:
    with pytest.raises(UnknownVerdictError) as caught:
        conformance(faulty.Stub(), rules=["GEMM", "WRITES"])
    assert str(caught.value) == (
        f"UNKNOWN: GEMM: {GEMM_IS_MISSING}; WRITES: masked_grouped_gemm is not implemented: see GEMM"
    )


@pytest.mark.long
def test_the_suites_of_a_stub_are_unknown_in_one_line_each(run_pytest) -> None:
    done = run_pytest(
        "suites/test_numbers.py", "--candidate", "faulty:Stub", "-k", "gemm", "-q", "-p", "no:cacheprovider"
    )
    assert done.code == 2, done.out
    assert done.out.count(f"UNKNOWN: {GEMM_IS_MISSING}") == 1
    assert "Traceback" not in done.out + done.err

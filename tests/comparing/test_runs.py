"""`harness report A B`: what is a regression, what is not, and the two files that say so."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from harness.comparing.runs import Run, compare, compare_records, newest_pair
from harness.records.changes import Direction
from harness.records.finding import Finding
from harness.records.record import CandidateRun, RuleResult, Skip, load_record
from harness.verdict import Verdict
from reports.compare import render
from reports.compare_markdown import markdown
from tests.records.kept_records import RECORDS, read, with_rule

REGRESSION, IMPROVEMENT, CHANGED, SAME = Direction


def test_a_record_against_itself_has_changed_in_nothing() -> None:
    for path in RECORDS.glob("*.json"):
        record = load_record(path)
        found = compare_records(record, copy.deepcopy(record))
        assert (found.verdicts, found.margins, found.timings, found.environment) == ([], [], [], [])
        assert [a.direction for a in found.accuracies] == [SAME] * len(found.accuracies)
        assert found.verdict is (Verdict.UNKNOWN if path.stem == "unknown" else Verdict.PASS), path.stem


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("PASS", "FAIL", REGRESSION),
        ("UNKNOWN", "FAIL", REGRESSION),
        ("PASS", "UNKNOWN", REGRESSION),
        ("FAIL", "PASS", IMPROVEMENT),
        ("UNKNOWN", "PASS", IMPROVEMENT),
        ("FAIL", "UNKNOWN", CHANGED),
    ],
)
def test_where_a_change_of_verdict_leads(before: str, after: str, expected: Direction) -> None:
    found = compare_records(with_rule(before), with_rule(after))
    (change,) = found.verdicts
    assert (change.subject, change.candidate, change.direction) == ("REPEAT", "eager", expected)
    assert (change.before, change.after) == (before, after)
    assert change.reason == f"{after if expected is not IMPROVEMENT else before} here", "of the worse one"
    assert found.verdict is (Verdict.FAIL if expected is REGRESSION else Verdict.PASS)
    assert found.unchanged["rules"] == {"PASS": 2, "SKIPPED": 1}


def test_a_judgement_that_was_lost_is_a_regression_and_one_that_was_not_asked_for_is_none() -> None:
    (skipped,) = compare_records(with_rule("PASS"), with_rule("", skipped="no stage")).verdicts
    assert (skipped.direction, skipped.after, skipped.reason) == (REGRESSION, "SKIPPED", "no stage")
    gone = read("pass")
    gone.skips.append(Skip("REPEAT on eager", "the candidate has no masked_moe"))
    (missing,) = compare_records(with_rule("PASS"), gone).verdicts
    assert (missing.direction, missing.reason) == (REGRESSION, "the candidate has no masked_moe")
    found = compare_records(with_rule("PASS"), read("pass"))
    assert found.verdicts == []
    assert [(o.side, o.subject, o.word) for o in found.one_sided] == [("before", "REPEAT", "PASS")]


@pytest.mark.parametrize(("requested", "expected"), [(True, REGRESSION), (False, CHANGED)])
def test_a_candidate_that_no_longer_runs(requested: bool, expected: Direction) -> None:
    records = read("pass"), read("pass")
    records[0].candidates.append(CandidateRun("mine", requested, True))
    records[1].candidates.append(CandidateRun("mine", requested, False, "needs sm_100"))
    (change,) = compare_records(*records).verdicts
    assert (change.part, change.candidate, change.direction) == ("candidates", "mine", expected)
    assert change.reason == "needs sm_100"


def test_a_run_that_fails_for_a_reason_of_its_own_is_a_regression() -> None:
    after = read("pass")
    after.verdict, after.reason = Verdict.FAIL, "traps drawn too seldom"
    (change,) = compare_records(read("pass"), after).regressions
    assert (change.subject, getattr(change, "reason", "")) == ("verdict", "traps drawn too seldom")
    assert "verdict" not in [
        v.subject for v in compare_records(with_rule("PASS"), with_rule("FAIL")).verdicts
    ]


def test_what_fails_in_both_is_listed_and_no_regression() -> None:
    found = compare_records(read("fail"), read("fail"))
    assert [s.subject for s in found.still_bad] == ["QUANT"]
    assert "1 of them still bad" in found.reason
    assert "Still failing" in markdown(found)


def test_a_margin_is_shown_with_its_factor_and_never_judged() -> None:
    found = compare_records(with_rule("PASS", ratio=0.25), with_rule("PASS", ratio=0.75))
    (margin,) = found.margins
    assert (margin.before, margin.after, margin.factor, margin.same_problems) == (0.25, 0.75, 3.0, True)
    assert found.verdict is Verdict.PASS
    assert found.margins_same == 1, "of GEMM: an interval judged nothing of QUANT"
    other = with_rule("PASS", ratio=0.75)
    other.seed = 1
    assert not compare_records(with_rule("PASS", ratio=0.25), other).margins[0].same_problems
    other.seed, other.command = 0, [*other.command, "--shapes=qwen3-30b"]
    assert not compare_records(with_rule("PASS", ratio=0.25), other).margins[0].same_problems


def test_illegal_margins_and_those_that_grew_most_come_first() -> None:
    records = []
    for ratios in ((0.1, 0.5, 0.9), (0.9, 0.6, 1.5)):
        record = read("pass")
        for name, ratio in zip("abc", ratios, strict=True):
            record.rules.append(
                RuleResult(name, "", "eager", Verdict.PASS, examples=1, compared=7, worst_ratio=ratio)
            )
        records.append(record)
    assert [m.rule for m in compare_records(*records).margins] == ["c", "a", "b"]


def test_times_are_listed_where_they_changed_by_a_quarter_and_a_second() -> None:
    found = compare_records(with_rule("PASS", seconds=4.0), with_rule("PASS", seconds=9.0, examples=80))
    (timing,) = found.timings
    assert (timing.what, timing.before, timing.after) == ("REPEAT", 4.0, 9.0)
    assert timing.work == "40 problems, now 80 problems"
    assert compare_records(with_rule("PASS", seconds=0.1), with_rule("PASS", seconds=0.9)).timings == []
    assert compare_records(with_rule("PASS", seconds=50.0), with_rule("PASS", seconds=60.0)).timings == []


def test_coverage_is_listed_where_a_rule_compared_half_as_much() -> None:
    after = read("pass")
    after.rules[0].compared //= 3
    (change,) = compare_records(read("pass"), after).coverage
    assert (change.rule, change.after) == (after.rules[0].rule, after.rules[0].compared)


def test_the_environment_names_what_changed() -> None:
    after = read("pass")
    after.environment.packages = {**after.environment.packages, "torch": "9.0", "triton": "4.0"}
    after.environment.gpus, after.environment.driver = ["NVIDIA B200"], "580.1"
    after.candidates[0].measured = {**after.candidates[0].measured, "accumulator": "13 bits"}
    before = read("pass")
    changed = {e.name: (e.before, e.after) for e in compare_records(before, after).environment}
    assert changed.keys() == {"torch", "triton", "GPUs", "driver", "eager, measured: accumulator"}
    assert changed["torch"] == (before.environment.packages["torch"], "9.0")
    assert changed["triton"] == ("", "4.0")


def test_what_was_found_of_a_kernel_and_where_its_modes_change_is_a_fact_that_may_change() -> None:
    before, after = read("pass"), read("pass")
    stage = "masked_grouped_gemm"
    before.candidates[0].findings = [Finding(stage, "order along k", "one pass")]
    after.candidates[0].findings = [Finding(stage, "order along k", "", modes=("parts 4 at k 7,168",))]
    (change,) = compare_records(before, after).environment
    assert change.name == f"eager, found: {stage}, order along k"
    assert (change.before, change.after) == ("one pass", "not known; parts 4 at k 7,168")


def test_the_arithmetic_of_exact_dot_products_is_a_fact_that_may_change() -> None:
    before, after = read("pass"), read("pass")
    before.rules[0].oracle, after.rules[0].oracle = {"float64": 4}, {"float32": 3, "float64": 1}
    (change,) = compare_records(before, after).environment
    assert (change.name, change.before, change.after) == (
        "exact dot products",
        "float64 100 %",
        "float32 75 %, float64 25 %",
    )


def test_a_fault_that_survives_now_is_a_regression() -> None:
    after = read("mutants")
    assert after.mutants is not None
    after.mutants["faults"][0] |= {"status": "survived", "reason": "150 problems"}
    found = compare_records(read("mutants"), after)
    (change,) = found.verdicts
    assert (change.part, change.before, change.after, change.direction) == (
        "mutants", "killed", "survived", REGRESSION,
    )  # fmt: skip
    assert found.unchanged == {"mutants": {"killed": 1}}


def test_a_canary_control_that_passes_now_is_a_regression() -> None:
    records = []
    for word in ("FAIL", "PASS"):
        record = read("pass")
        record.canary = {
            "questions": 64,
            "runs": [],
            "controls": [{"candidate": "eager+fault", "verdict": word, "reproduce": "harness canary serve"}],
        }
        records.append(record)
    (change,) = compare_records(*records).verdicts
    assert (change.part, change.direction) == ("canary control", REGRESSION)
    assert "harness canary serve" in render(compare_records(*records))


def test_folders_are_compared_as_a_whole_and_the_newest_of_one_with_the_one_before(tmp_path: Path) -> None:
    before = [Run("check", read("pass")), Run("gsm8k", read("gsm8k_pass"))]
    after = [Run("gsm8k", read("gsm8k_dead")), Run("check", with_rule("FAIL"))]
    found = compare(before, after)
    assert [type(c).__name__ for c in found.regressions] == ["VerdictChange", "AccuracyChange"]
    assert [(o.side, o.subject) for o in found.one_sided] == [("after", "REPEAT")]
    pair = newest_pair([Run("1", read("pass")), Run("2", read("mutants")), Run("3", read("mixed"))])
    assert pair is not None
    assert [run.name for run in pair] == ["1", "3"]
    assert newest_pair([Run("1", read("mutants")), Run("2", read("gsm8k_pass"))]) is None

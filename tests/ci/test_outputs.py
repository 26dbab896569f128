"""JUnit, step summary, annotations and the exit policy, from records with every part."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.ci.annotations import github_annotations
from harness.ci.cases import cases_of
from harness.ci.junit import write_junit
from harness.ci.outputs import write_outputs
from harness.ci.policy import exit_under
from harness.ci.step_summary import step_summary
from harness.records.record import CandidateRun, Failure, RuleResult, RunRecord
from harness.verdict import ExitCode, Verdict

HOSTILE = "<script>alert(1)</script> `x` \x00\x1b[31m \ud800 ::error::boo\r\n%0A"


def rule(name: str, verdict: Verdict, **more: object) -> RuleResult:
    return RuleResult(name, "a sentence", "mine", verdict, compared=10, seconds=1.5, **more)


@pytest.fixture
def record() -> RunRecord:
    """Every stage, one of each outcome, with text that wants to be markup."""
    failure = Failure(
        "GEMM", "mine", "1x1x16x16:1:normal:0", "gemm", "illegal", HOSTILE, "harness check --rule GEMM"
    )
    found = RunRecord(
        "run", "2026-01-01T00:00:00+00:00", ["harness"], Verdict.FAIL, f"1 of 4 failed {HOSTILE}"
    )
    found.candidates = [
        CandidateRun("mine", requested=True, ran=True),
        CandidateRun("other", requested=True, reason="needs a GPU"),
        CandidateRun("third", reason="not installed"),
    ]
    found.rules = [
        rule("QUANT", Verdict.PASS),
        rule("GEMM", Verdict.FAIL, failures=[failure], reason="illegal"),
        rule("MOE", Verdict.UNKNOWN, reason="no power"),
        rule("GRAPH", Verdict.PASS, skipped="no GPU"),
    ]
    run = {
        "candidate": "mine",
        "verdict": "FAIL",
        "qualifier": "dead",
        "reason": HOSTILE,
        "accuracy_strict": 0.0,
    }
    blind = {"candidate": "mine+x", "verdict": "PASS", "qualifier": "", "reason": "right"}
    found.canary = {"runs": [run], "controls": [blind]}
    found.mutants = {
        "score": {"killed": 3, "survived": 1},
        "faults": [{"name": "f", "status": "survived", "killed_by": "GEMM", "title": HOSTILE}],
    }
    return found


def test_every_stage_is_a_case_with_its_verdict(record: RunRecord) -> None:
    found = {(case.suite, case.name): case.verdict for case in cases_of(record)}
    assert found == {
        ("harness.rules.mine", "QUANT"): Verdict.PASS,
        ("harness.rules.mine", "GEMM"): Verdict.FAIL,
        ("harness.rules.mine", "MOE"): Verdict.UNKNOWN,
        ("harness.rules.mine", "GRAPH"): None,
        ("harness.rules.other", "support"): Verdict.UNKNOWN,
        ("harness.rules.third", "support"): None,
        ("harness.canary", "mine"): Verdict.FAIL,
        ("harness.canary", "mine+x (control)"): Verdict.UNKNOWN,
        ("harness.mutants", "score"): Verdict.FAIL,
    }


def test_a_run_that_failed_as_a_whole_has_a_failing_case_of_its_own() -> None:
    """Too few traps, an interrupt: no rule failed, and CI must not see an all-green file."""
    found = RunRecord(
        "run", "now", [], Verdict.FAIL, "traps drawn too seldom", rules=[rule("QUANT", Verdict.PASS)]
    )
    assert [case.verdict for case in cases_of(found)] == [Verdict.PASS, Verdict.FAIL]
    assert [case.verdict for case in cases_of(RunRecord("run", "now", []))] == [Verdict.UNKNOWN]


def test_junit_counts_and_parses_whatever_the_text(record: RunRecord, tmp_path: Path) -> None:
    write_junit(record, tmp_path / "junit.xml")
    root = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314 - our own file
    suites = {s.get("name"): s for s in root}
    mine = suites["harness.rules.mine"]
    counts = [mine.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["4", "2", "0", "1"]
    failure = mine.find("testcase[@name='GEMM']/failure")
    assert failure is not None
    assert failure.text is not None
    assert "<script>alert(1)</script>" in failure.text
    assert "\x1b" not in failure.text


def test_the_step_summary_shows_failures_first_and_no_markup(record: RunRecord) -> None:
    text = step_summary(record)
    assert text.startswith("### :x: FP4 MoE harness: FAIL")
    assert "<script>" not in text
    assert text.index("GEMM") < text.index("| candidate |")
    assert "| mine | 1 | 1 | 1 | 1 | 40 |" in text


def test_an_annotation_is_one_line_that_cannot_start_another(record: RunRecord) -> None:
    found = list(github_annotations(record))
    assert [line.split(" ")[0] for line in found] == ["::error"] * 3 + ["::warning"] * 3
    assert all("\n" not in line and "\r" not in line for line in found)
    assert found[0].startswith("::error title=rules.mine GEMM%3A FAIL::<script>")


def test_outputs_follow_the_environment_and_a_broken_drawing_costs_only_itself(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    environment = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTIONS": "true"}

    def broken(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("harness.ci.junit.write_junit", broken)
    written = write_outputs(record, tmp_path, environment=environment)
    said = capsys.readouterr()
    assert written == {"report": tmp_path / "report.html"}
    assert "the junit could not be written: OSError: no space" in said.err
    assert said.out.startswith("::error title=")
    assert summary.read_text(encoding="utf-8").startswith("### ")
    write_outputs(record, tmp_path, environment={})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("policy", "verdict", "code"),
    [
        ("unknown", Verdict.PASS, ExitCode.PASS),
        ("unknown", Verdict.UNKNOWN, ExitCode.UNKNOWN),
        ("unknown", Verdict.FAIL, ExitCode.FAIL),
        ("fail", Verdict.PASS, ExitCode.PASS),
        ("fail", Verdict.UNKNOWN, ExitCode.PASS),
        ("fail", Verdict.FAIL, ExitCode.FAIL),
    ],
)
def test_the_policy_decides_what_fails_a_job(policy: str, verdict: Verdict, code: ExitCode) -> None:
    found, words = exit_under(policy, RunRecord("run", "now", [], verdict))
    assert found is code
    assert bool(words) is (found.name != verdict.value)


def test_an_interrupted_run_stays_interrupted_under_every_policy() -> None:
    found = RunRecord("run", "now", [], Verdict.UNKNOWN, interrupted=True)
    assert exit_under("fail", found)[0] is ExitCode.INTERRUPTED


def test_regression_needs_an_earlier_record() -> None:
    with pytest.raises(ValueError, match="earlier"):
        exit_under("regression", RunRecord("run", "now", []))

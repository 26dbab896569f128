"""Known failures: accepted where they are expected, an alarm where they are gone, never a way to accept a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.problems.problem import parse_problem
from harness.problems.profiles import PROFILES
from harness.records.record import CandidateRun, Failure, RuleResult, RunRecord
from harness.rules import find_rules
from harness.running.check import CheckRequest, run_check
from harness.running.conclusion import conclude
from harness.running.known_failures import (
    KnownFailure,
    apply_known_failures,
    default_path,
    load_known_failures,
)
from harness.running.rules import judge_rules
from harness.running.settings import RunSettings
from harness.verdict import UsageError, Verdict


def known(*, until_fixed: bool = False, **words: str) -> KnownFailure:
    values = {"rule": "GEMM", "candidate": "mine", "package": "", "versions": "", "issue": "mine#7"}
    return KnownFailure(
        **(values | {"date": "2026-01-01", "reason": "a known bug"} | words), until_fixed=until_fixed
    )


def result(verdict: Verdict, kind: str = "illegal", **words: Any) -> RuleResult:
    made = RuleResult("GEMM", "a sentence", "mine", verdict, examples=3, compared=30, **words)
    if verdict is Verdict.FAIL:
        made.failures.append(
            Failure("GEMM", "mine", "1x1x16x16:1:normal:0", "gemm", kind, "message", "command")
        )
    return made


def test_a_failure_that_is_known_does_not_fail_the_run_and_is_shown() -> None:
    failing = result(Verdict.FAIL)
    (met,) = apply_known_failures([failing], [known()])
    assert met["matched"] is True
    assert failing.verdict is Verdict.PASS
    assert failing.reason == "known failure: a known bug (mine#7)"
    assert (failing.failures[0].kind, failing.failures[0].known_issue) == ("known", "mine#7")
    record = RunRecord("run", "now", [], rules=[failing], known_failures=[met])
    record.candidates = [CandidateRun("mine", ran=True)]
    conclude(record, {})
    assert record.verdict is Verdict.PASS
    assert record.reason.endswith("all of them legal but for 1 known failure")


def test_a_known_failure_that_no_longer_fails_fails_the_run() -> None:
    passing = result(Verdict.PASS)
    (met,) = apply_known_failures([passing], [known()])
    assert met["matched"] is False
    assert passing.verdict is Verdict.FAIL
    assert "known failure no longer fails: remove the entry for mine#7" in passing.reason


def test_a_known_failure_does_not_have_to_show_on_one_chosen_problem_or_before_the_time_is_over() -> None:
    chosen = result(Verdict.PASS)
    apply_known_failures([chosen], [known()], alarm=False)
    assert chosen.verdict is Verdict.PASS
    cut = result(Verdict.PASS, reason="3 of 40 problems before the time was over")
    apply_known_failures([cut], [known()])
    assert cut.verdict is Verdict.PASS


@pytest.mark.parametrize("kind", ["crash", "timeout", "rejected"])
def test_a_crash_is_never_known(kind: str) -> None:
    crashed = result(Verdict.FAIL, kind)
    (met,) = apply_known_failures([crashed], [known()])
    assert met["matched"] is False
    assert crashed.verdict is Verdict.FAIL
    assert crashed.failures[0].known_issue == ""
    both = result(Verdict.FAIL)
    both.failures.append(crashed.failures[0])
    apply_known_failures([both], [known()])
    assert both.verdict is Verdict.FAIL, "an illegal element does not cover for a crash beside it"


@pytest.mark.parametrize(
    "other",
    [
        {"rule": "QUANT"},
        {"candidate": "theirs"},
        {"package": "torch", "versions": "<1"},
        {"package": "no-such-distribution", "versions": ""},
    ],
)
def test_an_entry_for_something_else_leaves_a_failure_and_a_pass_alone(other: dict[str, str]) -> None:
    for verdict in (Verdict.FAIL, Verdict.PASS, Verdict.UNKNOWN):
        found = result(verdict)
        assert apply_known_failures([found], [known(**other)]) == []
        assert found.verdict is verdict


def test_a_version_range_holds_for_prereleases_and_builds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = known(package="flashinfer-python", versions="<=0.7.2.post1")
    for version, applies in {
        "0.7.2": True,
        "0.7.2.post1": True,
        "0.7.2.post2": False,
        "0.7.0rc1": True,
        "0.6.1+cu128": True,
        "0.8.0.dev20260101": False,
    }.items():
        monkeypatch.setattr("importlib.metadata.version", lambda _, version=version: version)
        assert entry.applies() is applies, version


@pytest.mark.parametrize(
    ("versions", "installed", "plain", "until_fixed"),
    [
        ("<=0.7.2", "0.7.2", True, True),
        ("<=0.7.2", "0.7.4", False, True),
        ("<=0.7.2", "0.8.0.dev20260101", False, True),
        (">=0.7,<0.7.3", "0.6.1", False, False),
        (">=0.7,<0.7.3", "1.0", False, True),
        ("==0.7.*", "0.8", False, True),
        ("==0.7.*", "0.6", False, False),
        (">=0.7", "0.6", False, False),
        ("", "9", True, True),
    ],
)
def test_an_entry_until_fixed_holds_for_every_later_version_and_for_no_earlier_one(
    monkeypatch: pytest.MonkeyPatch, versions: str, installed: str, plain: bool, until_fixed: bool
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: installed)
    assert known(package="theirs", versions=versions).applies() is plain
    assert known(package="theirs", versions=versions, until_fixed=True).applies() is until_fixed


def test_an_unchanged_defect_of_a_newer_version_is_known_and_a_fixed_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.7.4")
    entry = known(package="theirs", versions="<=0.7.2", until_fixed=True)
    failing = result(Verdict.FAIL)
    apply_known_failures([failing], [entry])
    assert failing.verdict is Verdict.PASS
    assert failing.reason == "known failure: a known bug (mine#7; still there in theirs 0.7.4)"
    passing = result(Verdict.PASS)
    apply_known_failures([passing], [entry])
    assert passing.verdict is Verdict.FAIL
    assert "no longer fails" in passing.reason
    without = result(Verdict.FAIL)
    apply_known_failures([without], [known(package="theirs", versions="<=0.7.2")])
    assert without.verdict is Verdict.FAIL


def test_a_skipped_rule_neither_fails_nor_raises_the_alarm() -> None:
    skipped = result(Verdict.PASS, skipped="needs a GPU")
    assert apply_known_failures([skipped], [known()]) == []
    assert skipped.verdict is Verdict.PASS


def test_the_list_that_ships_with_the_suites_is_read() -> None:
    entries = load_known_failures(default_path())
    assert {entry.issue for entry in entries} >= {"flashinfer#3103"}
    assert all(entry.reason and entry.date and entry.issue for entry in entries)


ENTRY = """
[[failure]]
rule = "GEMM"
candidate = "mine"
package = ""
versions = ""
issue = "mine#7"
date = 2026-01-01
reason = "a known bug"
"""


def test_an_entry_is_read_with_its_date_as_text(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    path.write_text(ENTRY)
    assert load_known_failures(path) == [known()]
    path.write_text(ENTRY + "until_fixed = true\n")
    assert load_known_failures(path) == [known(until_fixed=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[failure", "cannot be read as a list of known failures"),
        (ENTRY.replace('issue = "mine#7"\n', ""), "entry 1 must have exactly the fields"),
        (ENTRY + 'colour = "red"\n', "entry 1 must have exactly the fields"),
        (ENTRY + 'until_fixed = "yes"\n', "entry 1 has until_fixed 'yes', expected true or false"),
        (ENTRY + ENTRY.replace("GEMM", "GEM"), "entry 2 names rule 'GEM'; known: DECLARED"),
        (ENTRY.replace('versions = ""', 'versions = "seven"'), "versions 'seven', expected a range such as"),
        (
            ENTRY.replace("[[failure]]", "[[failures]]"),
            "must hold nothing but [[failure]] entries, got failures",
        ),
        (ENTRY.replace("[[failure]]", "[failure]"), "must hold nothing but [[failure]] entries"),
        ("failure = 3", "must hold nothing but [[failure]] entries"),
        ("failure = [3]", "must hold nothing but [[failure]] entries"),
    ],
)
def test_a_bad_list_is_bad_usage(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "known.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_known_failures(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_list_that_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a list of known failures"):
        load_known_failures(tmp_path / "nowhere.toml")


def test_a_check_applies_the_list(told, answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the request to the record; on one chosen problem a pass is no alarm."""
    from harness.running import check

    def run(illegal: int, problem: str | None = None) -> RunRecord:
        monkeypatch.setattr(check, "open_session", lambda *_, **__: told(lambda _: answer(illegal=illegal)))
        chosen = parse_problem(problem) if problem else None
        request = CheckRequest(
            ["mine"], find_rules(["GEMM"]), PROFILES["quick"], problem=chosen, known=[known()]
        )
        request.all_rules = False
        record = RunRecord("run", "now", [], profile="quick")
        return run_check(request, record, check.Progress())

    found = run(illegal=1)
    assert (found.verdict, found.known_failures[0]["matched"]) == (Verdict.PASS, True)
    gone = run(illegal=0)
    assert (gone.verdict, gone.known_failures[0]["matched"]) == (Verdict.FAIL, False)
    assert "no longer fails" in gone.rules[0].reason
    assert run(illegal=0, problem="1x1x16x16:1:normal:0").verdict is Verdict.PASS


@pytest.mark.parametrize("listed", ["mine", "another"])
def test_the_cause_of_a_known_failure_is_not_looked_for(
    told: Any, answer: Any, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    diagnosed: list[str] = []
    for name in ("diagnose_failure", "diagnose_both"):
        monkeypatch.setattr(f"harness.running.runner.{name}", lambda *_: diagnosed.append("") or [])
    settings = RunSettings(PROFILES["quick"], candidate="mine")
    session = told(lambda _: answer(illegal=1))
    (found,) = judge_rules(session, find_rules(["GEMM"]), settings, known=[known(candidate=listed)])
    assert found.result is not None
    assert found.result.verdict is (Verdict.PASS if listed == "mine" else Verdict.FAIL)
    assert bool(diagnosed) == (listed != "mine")

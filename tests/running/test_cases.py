"""`cases`, as another project's own tests use it: a test case for each rule."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch  # noqa: F401 - it can be loaded once in a process, and a session in this process takes its imports back

from harness import cases
from harness.candidates.eager import Eager
from harness.problems.profiles import find_profile
from harness.rules import RULE_IDS, find_rules
from harness.running.runner import RuleRun
from harness.running.settings import RunSettings
from harness.verdict import UsageError

pytest_plugins = "pytester"
pytestmark = pytest.mark.usefixtures("two_plugins")

PLANTED = """
from harness import cases
from harness.faults.named import load_named

MADE = []

def planted():
    MADE.append("made")
    return load_named("physical+alpha_of_neighbour")

@cases(planted, rules=["QUANT", "GEMM", "GRAPH"])
def test_mine(case):
    case()
    assert MADE == ["made"]
"""

CANNOT_RUN = """
from harness import Support, cases

class Mine:
    def support(self):
        return Support(ok=False, reason="needs sm_100")

    def masked_grouped_gemm(self, *arguments):
        raise AssertionError("called")

@cases(Mine, rules=["GEMM", "ACT", "REPEAT"])
def test_mine(case):
    case()
"""

NAMED_ONLY = """
from harness import cases

@cases(object)
def test_mine(case):
    assert case is not None
"""


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 0.0)
    monkeypatch.setattr("harness.running.runner.diagnose_failure", lambda *_: None)


@pytest.mark.usefixtures("quickly")
def test_of_a_planted_fault_the_cases_of_the_rules_that_it_breaks_fail(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine=PLANTED)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs", "--junitxml", "junit.xml")
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["E *AssertionError: gemm?expert *, row *", "*--candidate test_mine:planted --problem *"]
    )
    result.stdout.fnmatch_lines(["SKIPPED*CUDA graphs need a CUDA device*"])
    result.stdout.no_fnmatch_line("*conform.py*:*: *Error")
    tests = {case.get("name"): case for case in ET.parse(pytester.path / "junit.xml").iter("testcase")}  # noqa: S314
    assert list(tests) == [f"test_mine[{rule}]" for rule in ("QUANT", "GEMM", "GRAPH")]
    ends = {name: [child.tag for child in case] for name, case in tests.items()}
    assert list(ends.values()) == [[], ["failure"], ["skipped"]]


def test_two_workers_and_k_choose_among_the_same_names(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine=NAMED_ONLY)  # no case is called, so that no worker loads torch
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n", "2", "-v", "-k", "GEMM or REPEAT")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random(["*PASSED*test_mine?GEMM?*", "*PASSED*test_mine?REPEAT?*"])


def test_collection_makes_no_candidate_and_loads_no_torch(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_mine="""
        import sys
        from harness import cases

        def never():
            raise SystemExit("made")

        @cases(never)
        class TestMine:
            def test_mine(self, case):
                case()

        assert not {"torch", "hypothesis"} & (set(sys.modules) - BEFORE)
        """.replace("import sys", "import sys\n        BEFORE = set(sys.modules)", 1)
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--collect-only", "-q")
    assert [line.partition("[")[2] for line in result.outlines[: len(RULE_IDS)]] == [
        f"{i}]" for i in RULE_IDS
    ]


def test_what_cannot_be_judged_fails_its_case_as_unknown(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine=CANNOT_RUN)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "ACT")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*UnknownVerdictError: UNKNOWN: the candidate cannot run here: needs sm_100"]
    )


def test_a_time_limit_of_pytests_ends_a_rule_as_what_it_is(told, answer) -> None:
    """A plugin raises pytest's own failure in the middle of a call; hypothesis would take it for a failing problem."""

    def late(_problem):
        if len(session.problems) == 5:
            pytest.fail("Timeout (>1.0s)")
        return answer()

    session = told(late)
    settings = RunSettings(find_profile("quick"))
    with pytest.raises(pytest.fail.Exception, match=r"^Timeout \(>1.0s\)$"):
        RuleRun(find_rules(["QUANT"])[0], session, settings).draw()
    assert len(session.problems) == 5, "no further problem was judged"


@pytest.mark.parametrize("words", [{"rules": ["GEM"]}, {"profile": "quik"}])
def test_unknown_rules_and_profiles_are_refused_at_once(words) -> None:
    with pytest.raises(UsageError, match="did you mean"):
        cases(Eager, **words)

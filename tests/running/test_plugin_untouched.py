"""A pytest run that does not use the suites: the plugin is there, and does nothing."""

from __future__ import annotations

import pytest

pytest_plugins = "pytester"
pytestmark = pytest.mark.usefixtures("two_plugins")  # those of this environment are not what is tested

HEAVY = """
import sys
def test_nothing_heavy_is_loaded():
    assert not {"torch", "reports", "harness.records.record", "harness.running.check"} & set(sys.modules)
"""


@pytest.fixture
def exits(pytester: pytest.Pytester):
    """Run pytest on one file and return what it exits with."""

    def run(text: str, *arguments: str) -> int:
        pytester.makepyfile(test_mine=text)
        own_process = "sys.modules" in text or "KeyboardInterrupt" in text or "-n" in arguments
        run = pytester.runpytest_subprocess if own_process else pytester.runpytest_inprocess
        result = run("-p", "no:cacheprovider", *arguments)
        result.stdout.no_fnmatch_line("*fp4 moe harness*")
        return int(result.ret)

    return run


def test_a_pass_loads_nothing(exits) -> None:
    assert exits(HEAVY) == 0


@pytest.mark.parametrize(
    ("text", "arguments", "code"),
    [
        ("def test_mine(): assert 0", (), 1),
        ("def test_mine(): assert 0", ("-n", "1"), 1),
        ("def test_mine(): raise AssertionError('UNKNOWN: is what I say')", (), 1),
        ("def test_mine(): raise KeyboardInterrupt", (), 2),
        ("", (), 5),
        ("def test_mine(): pass", ("-k", "other"), 5),
        ("def test_mine(): pass", ("--no-such-option",), 4),
        ("import pytest\ndef test_mine(): pytest.skip('why not')", (), 0),
        ("raise ImportError", (), 2),
    ],
)
def test_pytests_own_exit_codes_stay(exits, text: str, arguments: tuple[str, ...], code: int) -> None:
    assert exits(text, *arguments) == code


def test_the_plugins_options_alone_change_no_exit_code(exits) -> None:
    assert exits("def test_mine(): assert 0", "--moe-candidate", "eager", "--moe-profile", "quick") == 1
    assert exits("", "--moe-candidate", "eager") == 5


def test_conformance_in_a_users_test_needs_nothing_else(pytester: pytest.Pytester) -> None:
    """The three lines of the README; the session is pytest's own, so a failure exits 1 and a pass 0."""
    pytester.makepyfile(
        test_mine="""
        from harness import conformance
        from harness.candidates.eager import Eager

        class Mine(Eager):
            def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
                super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
                out.neg_()

        def test_right():
            conformance(Eager(), rules=["QUANT"], max_seconds=30)

        def test_wrong():
            conformance(Mine(), rules=["GEMM"])
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*gemm?expert 0, row *", "*--candidate test_mine:Mine*"])
    result.stdout.no_fnmatch_line("*def conformance*")

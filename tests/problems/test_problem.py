"""Problems as strings: there and back, and what is wrong with a bad one."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.problems.problem import DATA, NEWEST, OPTIONS, Problem, parse_problem
from harness.problems.traps import TRAPS
from harness.verdict import UsageError

TYPES = ("float32_out", "float16_out")  # of which a problem has one at most


@st.composite
def any_problem(draw: st.DrawFn) -> Problem:
    capacity = draw(st.integers(1, 5000))
    masked_m = draw(st.lists(st.integers(0, capacity), min_size=1, max_size=60))
    if draw(st.booleans()):  # runs of the same number are written shortly
        masked_m = [m for m in masked_m for _ in range(draw(st.integers(1, 5)))]
    return Problem(
        len(masked_m),
        capacity,
        16 * draw(st.integers(1, 1000)),
        16 * draw(st.integers(1, 1000)),
        tuple(masked_m),
        draw(st.sampled_from(sorted(DATA))),
        draw(st.integers(0, 1 << 40)),
        frozenset(draw(st.lists(st.sampled_from([*TRAPS, *OPTIONS])))) - {draw(st.sampled_from(TYPES))},
        draw(st.integers(1, NEWEST)),
    )


@given(any_problem())
def test_a_problem_is_rebuilt_from_its_string(problem: Problem) -> None:
    """PROBLEM: one line without spaces; the same problem, hash and string."""
    text = str(problem)
    again = parse_problem(text)
    assert again == problem
    assert str(again) == text
    assert not re.search(r"\s", text)
    assert parse_problem(f"  {text}\n") == problem


def test_runs_of_masked_m_are_written_shortly() -> None:
    """PROBLEM: more than two of the same become N*TIMES."""
    problem = Problem(8, 4, 16, 16, (0, 0, 0, 4, 4, 1, 2, 2))
    assert str(problem) == "v2:8x4x16x16:0*3,4,4,1,2,2:normal:0"
    assert parse_problem("3x4x16x16:4*3:grid:7").masked_m == (4, 4, 4)


def test_a_string_without_version_is_of_the_first_and_new_problems_are_of_the_newest() -> None:
    """PROBLEM: what was recorded before there were versions keeps its string and its numbers."""
    old, new = "2x4x32x16:1,4:normal:9:nan", "v2:2x4x32x16:1,4:normal:9:nan"
    assert [parse_problem(text).version for text in (old, new, f"v1:{old}")] == [1, 2, 1]
    assert [str(parse_problem(text)) for text in (old, new, f"v1:{old}")] == [old, new, old]
    assert parse_problem(old) != parse_problem(new)
    assert Problem(2, 4, 32, 16, (1, 4)).version == NEWEST == 2
    assert str(replace(parse_problem(old), seed=3)) == "2x4x32x16:1,4:normal:3:nan"


GOOD = "v2:2x4x32x16:1,4:normal:9:nan"
BAD = {
    "": "is not of the form v2:EXPERTSxCAPACITYxHIDDENxINTER",
    "2x4x32": "is not of the form",
    "v2": "is not of the form v2:EXPERTSx",
    "v2:2x4x32": "is not of the form",
    "v3:2x4x32x16:1,4:normal:9": "the version must be v1 to v2, got v3: of a newer release?",
    "v0:2x4x32x16:1,4:normal:9": "is not of the form",
    "v2:v2:2x4x32x16:1,4:normal:9": "is not of the form",
    "v2:2x4x32x16:1,4:normal:9:nan:": "is not of the form",
    "2x4x32x16:1,4:normal": "is not of the form",
    "2x4x32x16:1,4:normal:9:nan:": "is not of the form",
    "2x4x32x16:1,4:normal:-9": "is not of the form",
    "2x4x32x16:1,4:normal:x": "is not of the form",
    "2x4x-32x16:1,4:normal:9": "is not of the form",
    "2x4x32x16:1;4:normal:9": "masked_m must be numbers such as 64,0*3,1, got '1;4'",
    "2x4x32x16:1,:normal:9": "masked_m must be numbers",
    "2x4x32x16:1*99999999999:normal:9": "masked_m must be numbers",
    "2x4x32x16:1:normal:9": "masked_m must have 2 entries, got 1",
    "2x4x32x16:1,5:normal:9": r"masked_m must lie in [0, 4], got [1, 5]",
    "2x4x30x16:1,4:normal:9": "hidden must be a multiple of 16, got 30",
    "2x4x32x8:1,4:normal:9": "inter must be at least 16, got 8",
    "0x4x32x16::normal:9": "masked_m must be numbers",
    "2x0x32x16:0,0:normal:9": "capacity must be at least 1, got 0",
    "2x4x32x16:1,4:gauss:9": "data must be one of normal, spread, grid, got 'gauss'",
    "2x4x32x16:1,4:normal:9:nans": "unknown trap or option 'nans'; known: e2m1_ties,",
    "2x4x32x16:1,4:normal:9:": "unknown trap or option ''",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text or "empty")
def test_a_bad_string_gives_one_line_that_says_what_is_wrong(text: str) -> None:
    """PROBLEM: UsageError, which the command line prints and exits with 64."""
    with pytest.raises(UsageError) as raised:
        parse_problem(text)
    assert BAD[text] in str(raised.value)
    assert str(raised.value).startswith("problem: ")
    assert "\n" not in str(raised.value)


@given(st.text(alphabet=GOOD + "x*²٣", max_size=30))
def test_any_text_is_a_problem_or_a_usage_error(text: str) -> None:
    """PROBLEM: never another exception, whatever was typed; digits of other scripts included."""
    try:
        problem = parse_problem(text)
    except UsageError:
        return
    assert parse_problem(str(problem)) == problem


@given(st.integers(0, len(GOOD) - 1), st.sampled_from([*GOOD, "²", "٣", "\n", " "]))
def test_a_typing_error_is_a_usage_error_at_most(place: int, typed: str) -> None:
    """PROBLEM: one character of a good string replaced by another: refused, or read as what it says."""
    text = GOOD[:place] + typed + GOOD[place + 1 :]
    try:
        problem = parse_problem(text)
    except UsageError:
        assert typed != GOOD[place], "the good string itself is refused"
    else:
        assert (problem == parse_problem(GOOD)) == (typed == GOOD[place]), "read as another problem"


def test_the_module_imports_no_torch() -> None:
    """PROBLEM: strings are checked before anything heavy is loaded."""
    code = "import sys, harness.problems.problem; sys.exit('torch' in sys.modules or 'hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""A newcomer's plain torch kernel without traits is right; each mistake is named in the first line of the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli import run
from harness.identification.measure import measure
from harness.records.record import load_record
from harness.running.judge import Judge
from tests.identification import newcomer

CHECK = ["check", "--no-canary", "--profile", "quick"]


@pytest.mark.parametrize(
    ("kernel", "named"),
    [
        pytest.param(kernel, named, marks=[pytest.mark.long] if i % 3 else [])
        for i, (kernel, named) in enumerate([(newcomer.Plain, ""), *newcomer.PLANTED.items()])
    ],
    ids=str,
)
def test_a_mistake_is_found_and_nothing_else(kernel: type, named: str) -> None:
    assert {f.named for f in measure(kernel()).findings if f.deviates} == ({named} if named else set())


def reason(kernel: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code and the verdict line."""
    code = run(
        [*CHECK, *arguments, "--candidate", f"tests.identification.newcomer:{kernel}", "--out", str(folder)]
    )
    return code, load_record(folder).reason


def test_one_row_in_an_order_that_is_not_known_is_judged_by_the_bound() -> None:
    """torch adds a single row in another order than many."""
    outcome = Judge(newcomer.Plain(), threads=1).judge("SHAPES", "3x1x192x320:0,0,1:spread:3666")
    assert outcome.comparisons
    assert [each.message for each in outcome.comparisons if each.illegal] == []


@pytest.mark.long
def test_a_newcomers_kernel_passes(tmp_path: Path) -> None:
    code, said = reason("Plain", tmp_path)
    assert code == 0, said


@pytest.mark.parametrize(
    ("kernel", "named", "rules"),
    [
        pytest.param(kernel.__name__, named, rules, marks=[pytest.mark.long] if not rules else [])
        for kernel, named in newcomer.PLANTED.items()
        for rules in ((), ("--rule", "DECLARED", "--no-isolate"))
        if not rules or kernel is newcomer.CastBeforeAlpha
    ],
)
def test_a_mistake_is_named_in_the_first_line(
    kernel: str, named: str, rules: tuple[str, ...], tmp_path: Path
) -> None:
    code, said = reason(kernel, tmp_path, *rules)
    point, _, found = named.partition(": ")
    assert code == 1
    assert f"first: DECLARED on tests.identification.newcomer:{kernel}: " in said
    assert f", {point}: {found}, by " in said

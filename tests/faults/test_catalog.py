"""The catalog: all 170 bugs are accounted for, and every fault is killed by the rule that it names, at its weakest too."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.candidates.traits import Traits
from harness.cli import run
from harness.faults.bugs import all_bugs, bug_classes
from harness.faults.fault import Fault, all_faults
from harness.faults.named import load_named, plant
from harness.identification.measure import measure
from harness.judging.context import Context, Known
from harness.mutants.broken_checks import BROKEN_CHECKS
from harness.mutants.places import elsewhere
from harness.problems.problem import parse_problem
from harness.rules import RULE_IDS, find_rules
from harness.running.judge import Judge, Watched, judge_context

FEWEST_FAULTS = 257
FAULTS = all_faults()

# Without traps: what normal random data shows.
PLAIN = (
    "3x40x64x64:40,0,17:normal:1",
    "2x160x128x96:160,129:normal:2",
    "3x24x272x80:9,24,3:normal:4",
    "3x200x160x32:200,130,64:normal:8",
    "4x16x64x48:16,3,0,5:normal:11",
    "3x9x256x128:9,4,7:normal:3",
    "3x24x64x64:5,0,9:normal:6",
)
_BLOCKS = "e2m1_ties+e4m3_ties+scale_underflow+scale_saturation+zero_block+subnormal+negative_zero"
PROBLEMS = (
    *PLAIN,
    f"3x24x272x80:9,24,3:normal:4:{_BLOCKS}",
    "2x33x48x128:33,20:normal:5:nan+inf+zero_row+magnitude_spread",
    "3x200x160x32:200,130,64:normal:8:subnormal_scales",
    "4x48x320x64:0,48,5,30:grid:7:e2m1_ties",
    "5x12x96x32:12,0,3,1,7:normal:9:outlier_block+negative_zero",
    "3x40x64x64:40,0,17:normal:1:sharded",
    "v2:3x128x128x128:128,0,17:normal:1:small",
    "3x40x64x64:40,0,17:normal:1:alpha_overflow",
    "3x40x64x64:40,0,17:normal:1:alpha_subnormal",
)


def base_of(fault: Fault) -> str:
    """`physical` misreads operands in another layout, as FlashInfer does: there the mistake is no fault."""
    if fault.unfit(Traits()) or fault.stages == ("prepare",):
        return elsewhere(fault)
    return "eager" if fault.killed_by == "LAYOUT-IN" else "physical"


def illegal(outcome: dict[str, Any]) -> bool:
    if outcome.status == "not applicable":
        return False
    return outcome.status != "judged" or bool(outcome.illegal)


def killer(fault: Fault, planting: str) -> str:
    """Return the first problem on which the fault's rule finds something illegal, or ""; those without traps first."""
    candidate = Watched(plant(base_of(fault), planting))
    (rule,), known = find_rules([fault.killed_by]), known_of(base_of(fault))

    def killed(problem: str) -> bool:
        candidate.forget()
        return illegal(judge_context(rule, Context(candidate, parse_problem(problem), known)))

    step = candidate.traits.width_multiple
    fitting = [text for text in PROBLEMS if not any(extent % step for extent in widths(text))]
    return next(filter(killed, fitting), "")


def widths(text: str) -> tuple[int, int]:
    """Return the hidden and the inner width of a problem."""
    problem = parse_problem(text)
    return problem.hidden, problem.inter


@cache
def known_of(base: str) -> Known:
    """Return what is known about a candidate without a fault, as `harness mutants` judges by."""
    return measure(load_named(base)).known


def test_there_are_enough_faults_in_every_category() -> None:
    assert len(FAULTS) >= FEWEST_FAULTS
    counts = dict.fromkeys((f.category for f in FAULTS.values()), 0)
    for fault in FAULTS.values():
        counts[fault.category] += 1
    assert min(counts.values()) >= 5, counts


def test_every_bug_has_faults_or_a_reason() -> None:
    bugs = all_bugs()
    assert len(bugs) == 170
    assert len(bug_classes()) == 25
    for bug in bugs.values():
        assert re.fullmatch(r"[A-I]\d\d", bug.id)
        assert re.fullmatch(r"[\w-]+#\d+|[\w-]+@[0-9a-f]{7,}", bug.thread), bug
        assert bug.kind in bug_classes(), bug
        assert len(bug.title) > 15, bug
        assert bug.faults or len(bug.reason) > 40, f"{bug.id} has neither a fault nor a reason of any length"


def test_every_class_of_bugs_has_a_planted_fault() -> None:
    planted = {bug.kind for bug in all_bugs().values() if bug.faults}
    assert planted == set(bug_classes())


def test_bugs_and_faults_name_each_other() -> None:
    of_bugs = {(bug.id, name) for bug in all_bugs().values() for name in bug.faults}
    of_faults = {(bug, fault.name) for fault in FAULTS.values() for bug in fault.bugs}
    assert of_bugs - of_faults == set(), "bugs.toml names a fault that does not name the bug"
    assert of_faults - of_bugs == set(), "a fault names a bug that bugs.toml does not give it"


def test_a_defect_of_a_test_is_covered_by_a_self_test_that_exists() -> None:
    """K24: what is wrong there is the check, which no fault of a kernel can model."""
    defects = [bug for bug in all_bugs().values() if bug.kind == "K24" and bug.reason and bug.id[0] == "I"]
    assert len(defects) >= 8
    for bug in defects:
        assert "covered by" in bug.reason, bug
        if names := re.search(r"self-test of the checks: ([\w, ]+)", bug.reason):
            assert set(names[1].split(", ")) <= set(BROKEN_CHECKS), bug
        else:
            folder = re.search(r"\((tests/\w+)\)", bug.reason)
            assert folder, bug
            assert list((Path(__file__).parents[2] / folder[1]).glob("test_*.py")), bug


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_says_what_it_is(fault: Fault) -> None:
    assert fault.bugs, "a fault is modelled on a real bug"
    assert fault.killed_by in RULE_IDS
    assert fault.title[0].isupper()
    assert len(fault.title) > 25
    assert fault.strengths
    assert set(fault.same_as) <= set(FAULTS)
    for other in fault.same_as:
        assert fault.name in FAULTS[other].same_as, f"{other} does not name {fault.name} as the same"
    if fault.category == "races":
        assert fault.simulated, "says what of a race a CPU cannot have"


@cache
def healthy(name: str) -> Judge:
    """A candidate without a fault, probed once for all rules."""
    return Judge(load_named(name), threads=1)


@pytest.mark.parametrize("rule", sorted({f.killed_by for f in FAULTS.values()}))
def test_without_a_fault_the_rules_find_nothing(rule: str) -> None:
    """Otherwise every fault would seem to be killed."""
    names = {"LAYOUT-IN": ("eager",), "PREPARE": ("control:physical_prepared",)}
    problems = [p for p in PROBLEMS if rule == "GEMM" or "alpha_overflow" not in p]  # results leave the range
    for name in names.get(rule, ("eager", "physical")):
        assert [p for p in problems if illegal(healthy(name).judge(rule, p))] == []


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_its_rule_kills_a_fault_everywhere_on_random_data_where_it_says_so_and_at_its_weakest(
    fault: Fault,
) -> None:
    killed_on = killer(fault, fault.name)
    assert killed_on, f"{fault.killed_by} lets {fault.name} live"
    if fault.random_data:
        assert killed_on in PLAIN, "only traps show it: say random_data=False"
    elif fault.killed_by in {"QUANT", "ACT", "GEMM"}:
        assert killed_on not in PLAIN, "random data shows it as well: leave random_data out"
    weakest = f"{fault.name}@weakest"
    assert killer(fault, weakest), f"{fault.killed_by} lets {weakest} live"


def test_the_list_shows_every_fault_and_every_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "faults"]) == 0
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert shown == set(FAULTS)
    assert run(["list", "bugs"]) == 0
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert shown == set(all_bugs())

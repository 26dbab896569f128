"""A seed draws the same problems in every version of the harness: a run is repeated by its seed, and compared by it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from harness.candidates import load_candidate, stages_of
from harness.problems.profiles import PROFILES
from harness.rules import RULES, Rule
from harness.running.runner import RuleRun
from harness.running.settings import RunSettings

KEPT = Path(__file__).parent / "data" / "drawn_seed7.txt"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PINNED = re.findall(r"^hypothesis==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)[0]


@pytest.fixture
def draw(told, answer) -> Any:
    """The one place that knows how a rule is run: returns the problems that it draws for a candidate that is right."""

    def draw(rule: Rule, candidate: str) -> Iterator[str]:
        session = told(lambda _: answer(), load_candidate(candidate).traits)
        RuleRun(rule, session, RunSettings(PROFILES["quick"], seed=7, candidate=candidate)).draw()
        return map(str, session.problems)

    return draw


@pytest.mark.skipif(
    hypothesis.__version__ != PINNED,
    reason=f"the list was drawn by hypothesis {PINNED}, and {hypothesis.__version__} draws other examples",
)
@pytest.mark.parametrize("candidate", ["eager", "physical"])
def test_a_seed_draws_the_problems_that_it_always_drew(candidate: str, draw, tmp_path: Path) -> None:
    there = stages_of(load_candidate(candidate))
    rules = [rule for rule in RULES if set(rule.stages) <= set(there) and not rule.once]
    drawn = [f"{candidate} {rule.id} {problem}" for rule in rules for problem in draw(rule, candidate)]
    kept = [line for line in KEPT.read_text().splitlines() if line.startswith(f"{candidate} ")]
    now = tmp_path / KEPT.name
    now.write_text("\n".join([*drawn, ""]))
    assert drawn == kept, f"{KEPT} holds what was drawn before, {now} what is drawn now"

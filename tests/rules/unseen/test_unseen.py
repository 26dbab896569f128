"""Faults that were written from the contract alone, before their author had seen any rule: what `quick` makes of them.

`first_*.py`, `second_*.py` and `third_*.py` are sets of sixty. At first sight 52, 53 and 57 were caught; what they showed
led to problems and to parts of rules. CAUGHT_BY names the rule that catches each now. Two have none, which do what
the contract allows: a result that the next call overwrites, and an address that is no multiple of 16 bytes.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest

from harness.problems.profiles import PROFILES
from harness.rules import find_rules
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict

with (Path(__file__).parent / "caught_by.tsv").open() as _table:
    CAUGHT_BY = dict(csv.reader(_table, delimiter="\t"))


def test_there_are_three_sets_of_sixty_and_none_is_left_out() -> None:
    for part in ("first", "second", "third"):
        names = {name for name in CAUGHT_BY if name.startswith(part)}
        defined = set()
        for kind in ("extents", "values", "calls", "layer"):
            module = importlib.import_module(f"tests.rules.unseen.{part}_{kind}")
            defined |= {
                f"{part}_{kind}:{name}"
                for name, value in vars(module).items()
                if isinstance(value, type)
                and value.__module__ == module.__name__
                and not name.startswith("_")
            }
        assert names == defined
        assert len(names) == 60


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, rule in CAUGHT_BY.items() if rule])
def test_it_is_caught_in_quick(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.running.runner.SHRINK_SECONDS", 0.0)
    monkeypatch.setattr("harness.running.runner.diagnose_failure", lambda *_: None)
    module, _, fault = name.partition(":")
    session = InProcess(getattr(importlib.import_module(f"tests.rules.unseen.{module}"), fault)(), threads=1)
    (rule,) = find_rules([CAUGHT_BY[name]])
    result = RuleRun(rule, session, RunSettings(PROFILES["quick"], candidate="mine")).draw()
    assert result.verdict is Verdict.FAIL

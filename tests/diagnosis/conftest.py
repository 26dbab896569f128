"""Helpers: the diagnosis of a mutant, and of the user's layer beside these tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROBLEM = "4x32x128x128:32,30,32,17:normal:5"


@pytest.fixture(
    params=[
        pytest.param(False, id="as declared"),
        pytest.param(True, id="identified", marks=pytest.mark.long),
    ]
)
def probe(request: pytest.FixtureRequest) -> bool:
    """Whether a candidate is identified before it is judged, as a run does it.

    That costs as much as the rest of a small diagnosis, and what a fault is named does not rest on it. So most tests judge by
    what is declared, a few of each file go the whole way, and `make test-all` goes it in all of them.
    """
    identified: bool = request.param
    return identified


whole_way = pytest.mark.parametrize("probe", [True], indirect=True, ids=["identified"])


@pytest.fixture
def diagnosed(probe: bool) -> Callable[..., list[dict[str, Any]]]:
    """Judge a mutant of a candidate on a problem, expect it to fail, and return the diagnosis."""
    from harness.faults.named import plant
    from harness.running.judge import Judge

    def diagnose(rule: str, *faults: str, base: str = "physical", problem: str = PROBLEM) -> Any:
        judge = Judge(plant(base, *faults), probe=probe)
        outcome = judge.judge(rule, problem)
        assert bool(outcome.illegal), f"{rule} passes {faults}"
        return judge.diagnose(rule, problem, "the command")

    return diagnose


@pytest.fixture(scope="session")
def users_layer() -> Iterator[ModuleType]:
    import importlib

    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield importlib.import_module("users_layer")
    finally:
        sys.path.remove(str(Path(__file__).parent))

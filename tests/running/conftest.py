"""A session that answers what a test tells it to, without torch; pytest sessions of the suites, in another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.candidates.protocol import ALL_STAGES, Traits
from harness.judging.compared import Compared
from harness.problems.problem import Problem, parse_problem
from harness.records.record import RunRecord, load_record
from harness.running.outcome import Description, Outcome, Status

REPOSITORY = Path(__file__).parents[2]
CANDIDATES = REPOSITORY / "tests" / "candidates"
TWO_PLUGINS = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "fp4_moe_harness_plugin,xdist.plugin",
}
Answer = Callable[[Problem], Outcome]


def judged(compared: int = 10, illegal: int = 0, *, power: bool = True) -> Outcome:
    comparison = Compared(
        "gemm",
        compared,
        illegal,
        judged={"by hand": compared},
        accepted_altered=[] if power else ["zeros"],
        worst_ratio=0.5,
        message="gemm[expert 0] = 1, legal is 2" if illegal else "",
    )
    return Outcome(Status.JUDGED, comparisons=[comparison])


class ToldSession:
    """A harness.running.session.Session whose answers are a function of the problem."""

    def __init__(self, answer: Answer, traits: Traits | None = None) -> None:
        self.answer = answer
        self.traits = traits or Traits(device="cpu", k_multiple=16, n_multiple=1)
        self.problems: list[Problem] = []
        self.diagnosed: list[tuple[str, str, str]] = []
        self.diagnosis: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}
        self.device_bytes = 0

    def describe(self) -> Description:
        return Description(asdict(self.traits), stages=list(ALL_STAGES), device_bytes=self.device_bytes)

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:
        self.problems.append(parse_problem(problem))
        return self.answer(self.problems[-1])

    def diagnose(
        self, rule_id: str, problem: str, command: str, seconds: float, likely: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        self.diagnosed.append((rule_id, problem, command))
        return self.diagnosis

    def close(self) -> None:
        pass


@pytest.fixture
def told() -> type[ToldSession]:
    return ToldSession


@pytest.fixture
def answer() -> Callable[..., Outcome]:
    """Build the answer "judged", with so many elements compared and illegal, with or without power."""
    return judged


@pytest.fixture(scope="session")
def faulty() -> Iterator[ModuleType]:
    """The misbehaving candidates of tests/candidates/faulty.py."""
    import importlib

    sys.path.insert(0, str(CANDIDATES))
    try:
        yield importlib.import_module("faulty")
    finally:
        sys.path.remove(str(CANDIDATES))


@pytest.fixture
def in_candidates_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child process looks for `faulty:Name` in the current directory, as it does for a user."""
    monkeypatch.chdir(CANDIDATES)


@pytest.fixture
def two_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that a test starts itself have ours and xdist, whatever else is installed."""
    for name, value in TWO_PLUGINS.items():
        monkeypatch.setenv(name, value)


@dataclass
class Session:
    """What a pytest session left behind."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def record(self) -> RunRecord:
        return load_record(self.folder)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One thread, a repository that is not asked for its state, and no plugin of pytest but these two.

    The sessions read this repository's settings, in which a warning is an error; other plugins may warn of each other.
    """
    base = {**os.environ, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull, "PYTEST_ADDOPTS": ""}
    return base | TWO_PLUGINS


@pytest.fixture(scope="session")
def run_pytest(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Session]:
    """Run pytest; "suites/..." names the suites of this repository."""

    def run(*arguments: str, cwd: Path = CANDIDATES) -> Session:
        folder = tmp_path_factory.mktemp("record")
        words = [str(REPOSITORY / a) if a.startswith("suites") else a for a in arguments]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
            cwd=cwd, env=environment | {"RECORD": str(folder)}, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        return Session(done.returncode, done.stdout, done.stderr, folder)

    return run

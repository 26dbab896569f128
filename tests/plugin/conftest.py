"""pytest sessions of the suites in processes of their own, in a folder that is not the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.records.record import RunRecord, load_record

REPOSITORY = Path(__file__).parent.parent.parent
CANDIDATES = REPOSITORY / "tests" / "candidates"


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
    return {**os.environ, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull, "PYTEST_ADDOPTS": ""}


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

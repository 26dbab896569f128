"""The installed command in a process of its own, in the folder of the misbehaving candidates."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.records.record import RunRecord, load_record

CANDIDATES = Path(__file__).parent.parent / "candidates"


@dataclass
class Done:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def record(self) -> RunRecord:
        return load_record(self.folder)


@pytest.fixture(scope="session")
def command() -> list[str]:
    return [str(Path(sys.executable).with_name("harness"))]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """One thread, and a repository that is not asked for its state."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}


@pytest.fixture(scope="session")
def harness(
    command: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Done]:
    """Run `harness ...`; `check` gets an output folder of its own unless it names one."""

    def run(*arguments: str, cwd: Path = CANDIDATES) -> Done:
        folder = tmp_path_factory.mktemp("out")
        if arguments[:1] == ("check",) and "--out" not in arguments:
            arguments = (*arguments, "--out", str(folder))
        done = subprocess.run(
            [*command, *arguments],
            cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr, folder)

    return run

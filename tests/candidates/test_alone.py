"""Candidates that import an engine, each in a process of its own: an engine leaves traces, in which another cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.flashinfer

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("alone_*.py"))


def test_the_files_are_there() -> None:
    assert FILES == ["alone_marlin.py", "alone_marlin_layout.py", "alone_vllm_emulation.py"]


@pytest.mark.parametrize("name", FILES)
def test_every_test_of_it_passes(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", str(HERE / name)]
    ran = subprocess.run(
        command, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stdout[-6000:]

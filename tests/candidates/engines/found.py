"""What judge_engine finds, once a process for all tests."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
ENGINES = ("sglang", "vllm")


@functools.cache
def findings(engine: str) -> dict[str, Any]:
    """What tests.candidates.engines.judge_engine finds, in a process of its own."""
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed; to run this: pip install --no-deps {engine}")
    command = [sys.executable, "-m", "tests.candidates.engines.judge_engine", engine]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    (line,) = (each for each in ran.stdout.splitlines() if each.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))

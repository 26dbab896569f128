"""Every pair of package versions that the interpreted candidate is said to run with passes `quick`; make test-versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = [pytest.mark.flashinfer, pytest.mark.long]

ROOT = Path(__file__).parents[2]
CANDIDATE = "flashinfer-cutedsl-cpu"
FLASHINFER = ("0.7.2", "0.7.2.post1", "0.7.4")
CUTLASS = ("4.8.0", "4.8.1")
ROUTED = (
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-m",
    "flashinfer",
    "tests/candidates/test_flashinfer_routed.py",
    "tests/candidates/test_flashinfer_mxfp8.py",
)
WHEELS = ("", "-libs-base", "-libs-core", "-libs-cu12")
# How busy the machine is must not decide: a problem may take ten minutes.
LIMIT = ("--problem-seconds", "600")
CHECK = ("-m", "harness.cli", "check", "--no-canary", "--profile", "quick", *LIMIT, "--candidate", CANDIDATE)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Install wheels without what they need into a folder of their own, once each: the environment has the rest."""

    @cache
    def install(*wheels: str) -> Path:
        folder = tmp_path_factory.mktemp("wheels")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*command, *wheels], check=True)
        return folder

    return install


@pytest.mark.parametrize("cutlass", CUTLASS)
@pytest.mark.parametrize("flashinfer", FLASHINFER)
def test_quick_passes_and_the_kernels_are_known(flashinfer, cutlass, installed, tmp_path):
    compiler = installed(*(f"nvidia-cutlass-dsl{wheel}=={cutlass}" for wheel in WHEELS))
    # A .pth file of the wheel would add the last folder, but is not read on PYTHONPATH.
    folders = (
        installed(f"flashinfer-python=={flashinfer}"),
        compiler,
        compiler / "nvidia_cutlass_dsl/dsl_packages",
    )
    path = os.pathsep.join([*map(str, folders), *sys.path[1:]])
    done = subprocess.run(
        [sys.executable, *CHECK, "--out", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["environment"]["packages"]["flashinfer-python"] == flashinfer
    assert record["environment"]["packages"]["nvidia-cutlass-dsl"] == cutlass
    (candidate,) = record["candidates"]
    assert "not yet known" not in candidate["measured"]["warning"]


@pytest.mark.parametrize("flashinfer", FLASHINFER)
def test_fused_layers_are_called_as_each_version_takes_it(flashinfer, installed):
    """A renamed argument of FlashInfer breaks here and not on a B200."""
    path = os.pathsep.join([str(installed(f"flashinfer-python=={flashinfer}")), *sys.path[1:]])
    done = subprocess.run(
        [sys.executable, *ROUTED],
        env=os.environ | {"PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout

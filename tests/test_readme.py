"""What the README shows is what a user gets: its failure, its example, its commands, and how long it takes to read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from harness.cli import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

PINNED = re.findall(r"^hypothesis==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]

# Each command of the README: run by a test here or by another, or only parsed (tests/test_docs.py), with the reason.
FAILURE = "harness check --no-canary --candidate physical+alpha_of_neighbour@7 --rule GEMM"
OWN_TEST = "pytest examples/my_kernel_test.py"
OWN_CHECK = "harness check --candidate examples.my_kernel_test:MyKernel"
RUN_ELSEWHERE = {
    "make demo": "by every user, and before each release in a fresh clone",
    "make test": "this is it",
}
PARSED = {
    "pytest suites --moe-candidate flashinfer-cutedsl": "needs an SM100 GPU",
    "harness reproduce harness-out/record.json --script repro.py": "of a failure; tests/reproduction",
    "harness identify": "needs a candidate; tests/cli/test_identify.py",
    "harness replay": "needs a capture; tests/replay/test_replay.py",
    "harness gsm8k": "needs a served model",
    "harness canary": "shows its commands",
    "harness deepep": "needs two GPUs; tests/cli/test_deepep.py runs it over gloo",
    "harness mutants": "44 s; tests/mutants runs parts of it",
}


def shown() -> set[str]:
    """Every command that the README shows, in blocks and within sentences."""
    lines = [line for language, block in BLOCKS if not language for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`((?:harness|make|pytest)\s[^`]+)`", prose)
    return {" ".join(command.split()) for command in [*lines, *inline]}


def test_every_command_is_run_or_parsed() -> None:
    assert shown() == {FAILURE, OWN_TEST, OWN_CHECK, *RUN_ELSEWHERE, *PARSED}


def test_it_is_read_in_five_minutes() -> None:
    assert 500 <= len(README.split()) <= 900


@pytest.mark.skipif(hypothesis.__version__ != PINNED, reason=f"drawn by hypothesis {PINNED}")
def test_the_failure_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(FAILURE)[1:]) == 1
    (promised,) = (block for language, block in BLOCKS if language == "text")
    assert " ".join(promised.split()) in " ".join(capsys.readouterr().err.split())
    assert README.index(promised) < 2500, "on the first screen"
    assert README.index("docs/report.png") < README.index("## ")


def test_the_example_is_as_it_is() -> None:
    (example,) = (block for language, block in BLOCKS if language == "python")
    assert (ROOT / "examples/my_kernel_test.py").read_text().endswith("\n" + example)
    assert sum(1 for line in example.splitlines() if line) <= 20


@pytest.mark.parametrize(
    ("rules", "passed"), [(["-k", "SHAPES or ISOLATION"], 2), pytest.param([], 15, marks=pytest.mark.long)]
)
def test_the_example_passes_under_pytest(
    rules: list[str], passed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    by_pytest = [sys.executable, "-m", *shlex.split(OWN_TEST), *rules, "-q", "-p", "no:cacheprovider"]
    ended = subprocess.run(by_pytest, capture_output=True, text=True, check=False, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{passed} passed" in ended.stdout


@pytest.mark.parametrize("rules", [["--rule", "GEMM"], pytest.param([], marks=pytest.mark.long)])
def test_the_example_passes_under_check(
    rules: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run([*shlex.split(OWN_CHECK)[1:], *rules, "--out", str(tmp_path)]) == 0

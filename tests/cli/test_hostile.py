"""Hostile candidates and command lines, composed from seeds: a documented exit code, a record, no traceback.

A few of each here; 200 of each with `make test-all`, which prints how they ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.cli import run
from harness.verdict import ExitCode
from tests.cli.hostile_candidates import plan
from tests.cli.hostile_lines import line, make_files

HERE = Path(__file__).parent
PROBLEM = "2x8x32x32:3,8:normal:1"
MANY = 200
TRACEBACK = "Traceback (most recent call last)"
VERDICTS = {"PASS": ExitCode.PASS, "FAIL": ExitCode.FAIL, "UNKNOWN": ExitCode.UNKNOWN}


def judged(seed: int, folder: Path) -> int:
    """Have a hostile candidate judged in processes of its own, see that nothing is lost, and return the exit code."""
    made = plan(seed)
    arguments = [
        "--candidate",
        f"hostile_candidates:C{seed}",
        "--rule",
        made.rule,
        "--problem",
        PROBLEM,
        "--out",
        str(folder),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "check", *arguments, *([] if made.isolated else ["--no-isolate"])],
        cwd=HERE, env={**os.environ, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}, capture_output=True, check=False,
        timeout=120,
    )  # fmt: skip
    said = f"{made}\n{done.stderr.decode(errors='replace')[-3000:]}"
    assert TRACEBACK.encode() not in done.stderr, said
    if done.returncode == ExitCode.USAGE:  # it declares what no traits can be
        assert done.stderr.count(b"\n") == 1, said
        assert not list(folder.iterdir()), said
        return done.returncode
    assert done.returncode in VERDICTS.values(), said
    record = json.loads((folder / "record.json").read_text())
    assert VERDICTS[record["verdict"]] == done.returncode, said
    assert record["reason"], said
    assert {p.name for p in folder.iterdir()} == {"record.json", "report.html", "junit.xml"}, said
    return done.returncode


@pytest.mark.parametrize("seed", [80])  # forged answers and an exit
def test_a_hostile_candidate_costs_one_problem(seed: int, tmp_path: Path) -> None:
    assert judged(seed, tmp_path / "out") == ExitCode.FAIL


@pytest.mark.long
def test_200_hostile_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = Counter(judged(seed, tmp_path / str(seed)) for seed in range(1000, 1000 + MANY))
    with capsys.disabled():
        print(f"\n{MANY} hostile candidates: {dict(codes)}, no traceback, no record lost")
    assert codes[ExitCode.FAIL] > MANY // 4


def test_hostile_command_lines_end_with_64_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path)
    for seed in range(25):
        words = line(seed)
        assert run(words) in {ExitCode.UNKNOWN, ExitCode.USAGE}, words
        assert TRACEBACK not in capsys.readouterr().err, words


@pytest.mark.long
def test_200_hostile_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes: Counter[int] = Counter()
    for seed in range(1000, 1000 + MANY):
        folder = tmp_path / str(seed)
        folder.mkdir()
        make_files(folder)
        done = subprocess.run(
            [sys.executable, "-m", "harness.cli", *line(seed)],
            cwd=folder, env={**os.environ, "GIT_DIR": os.devnull}, capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        err = done.stderr.decode(errors="replace")
        codes[done.returncode] += 1
        assert TRACEBACK not in err, (line(seed), err[-3000:])
        assert done.returncode in {ExitCode.PASS, ExitCode.FAIL, ExitCode.UNKNOWN, ExitCode.USAGE}, (
            line(seed),
            err,
        )
        if done.returncode == ExitCode.USAGE:
            assert err.startswith("harness: "), (line(seed), err)
            assert err.count("\n") == 1, (line(seed), err)
    with capsys.disabled():
        print(f"\n{MANY} hostile command lines: {dict(codes)}, no traceback")
    assert codes[ExitCode.USAGE] > MANY * 0.9

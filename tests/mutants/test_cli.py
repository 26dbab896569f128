"""`harness mutants` as it is typed: exit codes, what is printed, what is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import run
from harness.records.record import load_record
from harness.verdict import Verdict

CANDIDATES = Path(__file__).parent.parent / "candidates"


@pytest.fixture
def command(tmp_path):
    def typed(*arguments):
        done = subprocess.run(
            [str(Path(sys.executable).with_name("harness")), "mutants", *arguments, "--out", str(tmp_path)],
            cwd=CANDIDATES, env={**os.environ, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done, tmp_path

    return typed


def test_two_processes_kill_a_fault_and_exit_0(command):
    done, folder = command(
        "--fault",
        "output_scaled",
        "--fault",
        "block_scale_too_high",
        "--seeds",
        "1",
        "--profile",
        "quick",
        "--no-upstream",
    )
    assert done.returncode == 0, done.stderr
    assert "PASS: all 2 planted faults killed, in all 6 forms" in done.stdout
    record = load_record(folder)
    assert record.verdict is Verdict.PASS
    assert record.mutants["score"]["killed"] == 2
    assert "Planted faults" in (folder / "report.html").read_text()


def test_a_candidate_that_ends_its_process_is_unknown(command):
    done, folder = command("--candidate", "faulty:AbortsAtStart", "--fault", "output_scaled")
    assert done.returncode == 2, done.stderr
    assert "faulty:AbortsAtStart cannot run here: the process died" in done.stdout
    assert load_record(folder).verdict is Verdict.UNKNOWN


def test_a_survivor_exits_1_and_is_named(invisible, tmp_path, capsys):
    arguments = [
        "--fault",
        invisible.name,
        "--profile",
        "quick",
        "--seeds",
        "0",
        "--jobs",
        "1",
        "--no-upstream",
    ]
    assert run(["mutants", *arguments, "--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"survived: {invisible.name} under LAYOUT-OUT, 10 problems"
    assert f"FAIL: 1 of 1 planted faults survive: {invisible.name}" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fault", "output_scale"], "unknown fault 'output_scale': did you mean 'output_scaled'"),
        (["--category", "gem"], "unknown category 'gem'; known: scales"),
        (["--candidate", "phisical"], "unknown candidate 'phisical': did you mean 'physical'"),
        (["--profile", "huge"], "unknown profile 'huge'"),
        (["--seeds", "-1"], "--seeds must be at least 0, got -1"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--max-seconds", "nan"], "--max-seconds must be at least 0, got nan"),
    ],
)
def test_bad_usage_exits_64(arguments, says, tmp_path, capsys):
    code = run(["mutants", "--out", str(tmp_path), *arguments])
    assert code == 64
    assert says in capsys.readouterr().err


def test_help_has_examples(capsys):
    assert run(["mutants", "--help"]) == 0
    out = capsys.readouterr().out
    assert "harness mutants --candidate my.kernels:Moe" in out
    assert "--matrix" in out

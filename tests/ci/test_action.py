"""The composite action: its step runs here as GitHub would run it, and no input is ever part of a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROBLEM = "2x8x64x32:3,5:normal:1"


def step(tmp_path: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], str]:
    outputs = tmp_path / "outputs"
    outputs.touch()
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "GITHUB_OUTPUT": str(outputs),
        "OUT": str(tmp_path / "out put"),
        **dict.fromkeys(("CANDIDATE", "BASE_URL", "ARGUMENTS", "AGAINST"), ""),
        "PROFILE": "quick",
        "FAIL_ON": "unknown",
        **inputs,
    }
    done = subprocess.run(
        ["bash", str(ROOT / ".github" / "run-harness.sh")],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, outputs.read_text(encoding="utf-8")


def test_check_runs_with_arguments_as_a_shell_splits_them(tmp_path: Path) -> None:
    done, outputs = step(
        tmp_path,
        COMMAND="check",
        CANDIDATE="eager+output_scaled",
        ARGUMENTS=f"--rule GEMM '--problem' '{PROBLEM}' --no-isolate",
    )
    assert done.returncode == 1, done.stderr
    assert outputs.splitlines() == ["verdict=FAIL", f"record={tmp_path}/out put/record.json"]
    assert {p.name for p in (tmp_path / "out put").iterdir()} == {"record.json", "report.html", "junit.xml"}


@pytest.mark.parametrize("word", ["serve", "$(touch hacked)"])
def test_another_command_is_refused(tmp_path: Path, word: str) -> None:
    done, outputs = step(tmp_path, COMMAND=word)
    assert done.returncode == 64
    assert outputs == ""
    assert not (ROOT / "hacked").exists()


@pytest.mark.parametrize(
    ("command", "extra", "installed"),
    [
        ("check", "", "the action[canary]"),
        ("check", "cutedsl", "the action[canary,cutedsl]"),
        ("gsm8k", "", "the action[gsm8k]"),
        ("mutants", "", "the action"),
        ("mutants", "cutedsl", "the action[cutedsl]"),
    ],
)
def test_what_the_command_needs_is_installed(
    tmp_path: Path, command: str, extra: str, installed: str
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    given = {"PYTHON": str(python), "COMMAND": command, "EXTRA": extra, "GITHUB_ACTION_PATH": "the action"}
    script = ROOT / ".github" / "install-harness.sh"
    done = subprocess.run(
        ["bash", str(script)], env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    *_, what = done.stdout.splitlines()
    assert what == installed


def test_no_input_is_part_of_a_script() -> None:
    """Text of a pull request that lands in a script is a command: inputs go through the environment."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    scripts = [s["run"] for s in action["runs"]["steps"] if "run" in s]
    assert len(scripts) == 2
    assert not any("${{" in script for script in scripts)
    used = {word for s in action["runs"]["steps"] for word in str(s.get("env", {})).split("inputs.")[1:]}
    assert {name for name in action["inputs"] if name != "artifact"} <= {
        word.split(" ")[0].rstrip("}'") for word in used
    }


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.name)
def test_every_workflow_keeps_its_report_and_can_only_read(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert "upload-artifact" in path.read_text(encoding="utf-8")
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())

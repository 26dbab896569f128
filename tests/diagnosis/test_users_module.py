"""A fault written by hand into a user's own module, of which only masked_moe can be called, is found and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROBLEM = "4x24x128x128:24,20,24,9:normal:11"


def harness(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_check_names_the_fault_in_its_message_its_record_and_its_report(tmp_path) -> None:
    candidate = "users_layer:HalvesSwapped"
    words = ("--candidate", candidate, "--rule", "MOE", "--problem", PROBLEM, "--out", str(tmp_path))
    done = harness("check", *words)
    assert done.returncode == 1, done.stderr
    line = next(line for line in done.stderr.splitlines() if "diagnosis" in line)
    assert "gate" in line.lower()
    assert "reproduces 100 % of" in line
    assert "experts 1 to 3" in line
    failure = json.loads((tmp_path / "record.json").read_text())["rules"][0]["failures"][0]
    first = failure["diagnosis"][0]
    assert first["fault"] == "gate_and_up_swapped"
    assert first["explained"] == 1
    assert first["where"]["masked_moe"]["experts"] == [1, 2, 3]
    assert first["title"] in (tmp_path / "report.html").read_text()

    again = harness("diagnose", str(tmp_path), "--failure", "1")
    assert again.returncode == 1
    assert first["title"] in again.stdout


def test_the_same_layer_without_the_fault_passes_and_is_not_diagnosed(users_layer) -> None:
    from harness.running.judge import Judge

    judge = Judge(users_layer.UsersLayer())
    assert not any(c.illegal for c in judge.judge("MOE", PROBLEM).comparisons)
    assert [finding["passed"] > 1 for finding in judge.diagnose("MOE", PROBLEM, "")] == [True]

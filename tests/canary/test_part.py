"""The canary as a part of `harness check`: what its runs mean, a server that does not start, and a whole run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.canary.part import ServerStartError, served
from harness.canary.verdict import judge_canary
from harness.records.parts.canary import CanaryPart, CanaryRun
from harness.verdict import Verdict

ROOT = Path(__file__).parents[2]


def run(candidate: str, verdict: str) -> CanaryRun:
    return CanaryRun(verdict, reason=f"{verdict} because", candidate=candidate)


@pytest.mark.parametrize(
    ("runs", "controls", "verdict", "word"),
    [
        (["PASS", "PASS"], ["FAIL"], Verdict.PASS, "PASS because"),
        (["PASS", "FAIL"], ["FAIL"], Verdict.FAIL, "candidate 1"),
        (["PASS", "UNKNOWN"], ["FAIL"], Verdict.UNKNOWN, "candidate 1"),
        (["PASS"], ["PASS"], Verdict.UNKNOWN, "without power"),
        (["PASS"], ["UNKNOWN"], Verdict.UNKNOWN, "without power"),
        (["FAIL"], ["PASS"], Verdict.FAIL, "candidate 0"),
        (["PASS"], [], Verdict.PASS, "PASS because"),
    ],
)
def test_a_canary_whose_control_does_not_fail_proves_nothing(
    runs: list[str], controls: list[str], verdict: Verdict, word: str
) -> None:
    found = judge_canary(
        CanaryPart(
            runs=[run(f"candidate {i}", v) for i, v in enumerate(runs)],
            controls=[run("control", v) for v in controls],
        )
    )
    assert found is not None
    assert found[0] is verdict
    assert word in found[1]


def test_a_canary_that_did_not_run_says_nothing() -> None:
    assert judge_canary(None) is None
    assert judge_canary(CanaryPart()) is None


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(ServerStartError, match="exited with 64: harness: unknown candidate 'nonsense'"),
        served("nonsense"),
    ):
        pass


def test_check_asks_the_canary_over_http_and_plants_its_control(tmp_path: Path) -> None:
    """One rule on one problem, then 16 questions through `eager`, and 16 with a fault that makes it dead."""
    command = [
        sys.executable, "-m", "harness.cli", "check", "--candidate", "eager", "--rule", "QUANT",
        "--problem", "2x8x64x32:3,5:normal:1", "--no-isolate", "--canary-questions", "16", "--out", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    (healthy,), (control,) = record["canary"]["runs"], record["canary"]["controls"]
    assert healthy["verdict"] == "PASS", done.stderr
    assert healthy["correct_strict"] == 16
    assert (control["candidate"], control["verdict"], control["qualifier"]) == (
        "eager+input_scale_inverted", "FAIL", control["qualifier"],
    )  # fmt: skip
    assert control["correct_flexible"] == 0
    assert control["qualifier"] in {"dead", "degenerate"}
    assert (done.returncode, record["verdict"]) == (0, "PASS")
    assert "canary on eager+input_scale_inverted: FAIL" in done.stderr

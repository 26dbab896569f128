"""`harness reproduce`: which failure is meant, the same verdict again, and a script that was seen to fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli import run
from harness.records.record import Failure, RuleResult, RunRecord
from harness.running.failure import reproduce_command
from harness.running.outcome import Outcome, Status
from harness.verdict import Verdict

KERNEL = Path(__file__).parent.parent / "reproduction" / "plain_kernel.py"
PROBLEM = "2x5x32x48:5,3:normal:3"
FAILURES = [
    ("QUANT", "eager", "known"), ("GEMM", "plain_kernel:Kernel", "illegal"), ("GEMM", "physical", "illegal"),
    ("MOE", "physical", "crash"),
]  # fmt: skip


def write_record(folder: Path, failures: list[tuple[str, str, str]]) -> Path:
    record = RunRecord("run", "now", [])
    for rule, candidate, kind in failures:
        line = reproduce_command(rule, candidate, PROBLEM)
        failure = Failure(rule, candidate, PROBLEM, "", kind, "it is wrong", line)
        record.rules.append(RuleResult(rule, "a sentence", candidate, Verdict.FAIL, failures=[failure]))
    record.write(folder / "record.json")
    return folder / "record.json"


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ([], ("GEMM", "plain_kernel:Kernel")),
        (["--failure", "1"], ("QUANT", "eager")),
        (["--failure", "4"], ("MOE", "physical")),
        (["--rule", "gemm", "--failure", "2"], ("GEMM", "physical")),
        (["--candidate", "physical"], ("GEMM", "physical")),
        (["--rule", "QUANT"], ("QUANT", "eager")),
    ],
)
def test_the_failure_that_is_asked_for_is_judged_again_by_its_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], chosen: tuple[str, str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("harness.running.check.run_check", lambda request, record, _: asked.append(request))
    write_record(tmp_path, FAILURES)
    assert run(["reproduce", str(tmp_path), *arguments, "--out", str(tmp_path / "again")]) == 2
    (request,) = asked
    assert (request.rules[0].id, request.candidates[0], str(request.problem)) == (*chosen, PROBLEM)
    assert (tmp_path / "again" / "record.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--failure", "5"], "--failure must be 1 to 4, got 5"),
        (
            ["--rule", "ACT"],
            "has no such failure; it has QUANT on eager, GEMM on plain_kernel:Kernel, GEMM on phys",
        ),
        (
            ["--script", "kernel.txt"],
            "--script must be a file FILE.py in a folder that exists, got kernel.txt",
        ),
        (["--script", "nowhere/kernel.py"], "in a folder that exists"),
    ],
)
def test_what_cannot_be_meant_is_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    write_record(tmp_path, FAILURES)
    assert run(["reproduce", str(tmp_path), *arguments]) == 64
    assert words in capsys.readouterr().err
    write_record(tmp_path, [])
    assert run(["reproduce", str(tmp_path)]) == 64
    assert "it has no failure at all" in capsys.readouterr().err


class ToldChild:
    """A candidate's process that keeps some file, or says why not."""

    def __init__(self, answer: str = "") -> None:
        self.answer, self.asked = answer, []

    def __call__(self, candidate: str) -> ToldChild:
        return self

    def keep_calls(
        self, rule: str, problem: str, path: Path, seconds: float, *, before_each: bool
    ) -> Outcome:
        self.asked.append((rule, problem, before_each))
        if not self.answer:
            path.write_bytes(b"")
        return Outcome(Status.KEPT, self.answer)

    def close(self) -> None:
        pass


def test_calls_before_it_are_made_where_the_failure_needs_them(tmp_path: Path, monkeypatch, capsys) -> None:
    child, ran = ToldChild(), []

    def shows(script: Path, kind: str) -> tuple[bool, str]:
        ran.append(script.read_text())
        return len(ran) == 2, "exit 1, 8 wrong"

    monkeypatch.setattr("harness.running.session.Child", child)
    monkeypatch.setattr("harness.cli.reproduce._shows", shows)
    write_record(tmp_path, FAILURES)
    assert run(["reproduce", str(tmp_path), "--script", str(tmp_path / "f.py")]) == 0
    assert ["warm=True" in text for text in ran] == [False, True]
    assert child.asked == [("GEMM", PROBLEM, False)]
    assert "run once: exit 1, 8 wrong" in capsys.readouterr().out
    assert run(["reproduce", str(tmp_path), "--script", str(tmp_path / "f.py"), "--failure", "4"]) == 2
    assert child.asked[-1] == ("MOE", PROBLEM, True), "a crash: on the disk before the call"
    assert "The failure did not show in it" in capsys.readouterr().err


def test_where_there_is_no_script_the_line_that_repeats_it_is_given(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("harness.running.session.Child", ToldChild("POW2 compares calls"))
    write_record(tmp_path, FAILURES)
    assert run(["reproduce", str(tmp_path), "--script", str(tmp_path / "f.py")]) == 64
    err = capsys.readouterr().err
    assert (
        "there is no script for this failure: POW2 compares calls. Repeat it with: harness check --rule"
        in err
    )
    assert not (tmp_path / "f.py").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("bug", "rule"),
    [("gemm", "GEMM"), ("silu", "PIPELINE"), ("aborts", "QUANT"), ("now and then", "TOKENS")],
)
def test_from_a_check_to_a_script_that_fails_until_the_bug_is_fixed(
    harness: Callable[..., Any], environment: dict[str, str], tmp_path: Path, monkeypatch, bug: str, rule: str
) -> None:
    shutil.copy(KERNEL, tmp_path)
    monkeypatch.setitem(environment, "BUG", bug)
    name = "plain_kernel:Kernel"
    checked = harness("check", "--candidate", name, "--rule", rule, "--out", "out", cwd=tmp_path)
    assert checked.code == 1, checked.err
    again = harness("reproduce", "out", "--out", "again", cwd=tmp_path)
    assert again.code == 1, again.err
    written = harness("reproduce", "out", "--script", "shown.py", cwd=tmp_path)
    assert written.code == 0, written.out + written.err
    codes = []
    for now in (bug, ""):
        done = subprocess.run(
            [sys.executable, "shown.py"],
            cwd=tmp_path, env={**os.environ, **environment, "BUG": now}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        codes.append(done.returncode)
    assert codes[0] in {1, -6}
    assert codes[1] == 0

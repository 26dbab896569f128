"""What `harness check` exits with, through a process, with the record and the report that belong to each code."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.records.record import load_record
from harness.verdict import Verdict

CANDIDATES = Path(__file__).parent.parent / "candidates"
SMALL = "1x4x32x32:2:normal:1"


@pytest.fixture(scope="module")
def failing(harness):
    """One rule that fails on a drawn problem and shrinks."""
    return harness("check", "--candidate", "faulty:Doubled", "--rule", "gemm", "--seed", "5")


@pytest.fixture(scope="module")
def mixed(harness):
    """Two candidates on one problem: one that is right and talkative, one that crashes on it."""
    arguments = ("--candidate", "faulty:Talks", "--candidate", "faulty:Aborts")
    return harness("check", *arguments, "--rule", "QUANT", "--problem", "2x4x32x32:2,1:normal:1")


def test_0_when_everything_that_was_compared_is_legal(harness) -> None:
    done = harness("check", "--candidate", "eager", "--rule", "QUANT", "--rule", "MOE", "--problem", SMALL)
    assert (done.code, done.record.verdict) == (0, Verdict.PASS), done.err
    assert re.search(
        r"^PASS: 2 results on eager: \d+ elements compared, all of them legal; up to experts \d+, .*; beyond that not tested$",
        done.out,
        re.MULTILINE,
    )
    assert f"report: {done.folder / 'report.html'}" in done.out
    assert "PASS" in (done.folder / "report.html").read_text()
    assert [r.rule for r in done.record.rules] == ["QUANT", "MOE"]
    assert "24 bits or more" in done.record.candidates[0].measured["accumulator"]
    assert done.record.command[:2] == ["harness", "check"]
    assert done.record.environment.packages["torch"]


def test_1_when_an_element_is_illegal_with_its_place_and_the_command_that_repeats_it(failing) -> None:
    assert (failing.code, failing.record.verdict) == (1, Verdict.FAIL), failing.err
    (failure,) = failing.record.rules[0].failures
    assert failure.message.replace("\n", "\n    ") in failing.err
    assert failure.problem.startswith("v2:1x1x16x16:1:normal:0"), (
        "a simple fault shrinks to the smallest problem"
    )
    assert failing.out.startswith("FAIL: 1 of 1 rules failed; first: GEMM on faulty:Doubled")
    assert "faulty:Doubled" in (failing.folder / "report.html").read_text()


def test_the_command_of_a_failure_repeats_it(failing, harness) -> None:
    (failure,) = failing.record.rules[0].failures
    program, *arguments = shlex.split(failure.reproduce)
    assert program == "harness"
    again = harness(*arguments)
    assert again.code == 1
    (repeated,) = again.record.rules[0].failures
    # The diagnosis is made on the largest problem that failed, of which a repetition has only this one.
    said, said_again = (f.message.partition("\n  diagnosis")[0] for f in (failure, repeated))
    assert (repeated.problem, repeated.place, said_again) == (failure.problem, failure.place, said)
    assert repeated.diagnosis[0]["fault"] == failure.diagnosis[0]["fault"]


def test_1_when_a_candidate_crashes_and_the_others_are_judged_all_the_same(mixed) -> None:
    assert mixed.code == 1
    talks, aborts = mixed.record.rules
    assert (talks.candidate, talks.verdict) == ("faulty:Talks", Verdict.PASS)
    assert (aborts.verdict, aborts.failures[0].kind) == (Verdict.FAIL, "crash")
    assert "SIGABRT" in aborts.reason
    assert aborts.failures[0].problem == "2x4x32x32:2,1:normal:1"


def test_what_a_candidate_prints_stays_out_of_the_commands_own_output(mixed) -> None:
    assert "chatter from Python" in mixed.err
    assert "chatter from a kernel" in mixed.err
    assert "chatter" not in mixed.out
    assert [line.split(":")[0] for line in mixed.out.splitlines()] == ["FAIL", "record", "report", "junit"]


@pytest.mark.parametrize(
    ("candidate", "rule", "code", "words"),
    [
        ("faulty:Unsupported", "QUANT", 2, "cannot run here: needs a machine that does not exist"),
        ("eager", "QUANT", 0, "all of them legal"),
        ("faulty:Doubled", "GEMM", 1, "GEMM on faulty:Doubled"),
        ("faulty:Raises", "GEMM", 1, "GEMM on faulty:Raises"),
        ("eager", "GRAPH", 2, "no rule was judged"),
        ("faulty:QuantizesOnly", "GEMM", 2, "no rule was judged"),
        ("faulty:Narrow", "QUANT", 2, "hidden 32 is not a multiple of 64"),
        ("faulty:RaisesAtStart", "QUANT", 2, "cannot run here: FileNotFoundError: libkernel.so"),
    ],
)
def test_the_same_codes_without_a_process_of_its_own(
    candidate: str, rule: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from harness.cli import run

    monkeypatch.chdir(CANDIDATES)
    arguments = ["--candidate", candidate, "--rule", rule, "--problem", SMALL, "--out", str(tmp_path)]
    assert run(["check", "--no-isolate", *arguments]) == code
    record = load_record(tmp_path)
    assert words in record.reason
    assert all(skip.reason for skip in record.skips)
    assert capsys.readouterr().out.startswith(f"{record.verdict.value}: {record.reason}")


def test_2_when_the_real_kernel_was_asked_for_on_a_machine_without_a_gpu(harness) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = harness("check", "--candidate", "flashinfer-cutedsl")
    assert (done.code, done.record.verdict) == (2, Verdict.UNKNOWN), done.err
    assert done.record.reason.startswith("flashinfer-cutedsl cannot run here: ")
    assert done.record.candidates[0].reason
    assert f"not run: {done.record.candidates[0].reason}" in done.err


def test_2_when_no_problem_holds_a_valid_row(harness) -> None:
    done = harness("check", "--candidate", "eager", "--rule", "QUANT", "--problem", "2x4x32x32:0,0:normal:1")
    assert (done.code, done.record.verdict) == (2, Verdict.UNKNOWN), done.err
    assert done.out.startswith("UNKNOWN: QUANT on eager: nothing was compared")


def test_70_when_the_harness_itself_fails(harness) -> None:
    """A defect of a rule must not be taken for one of the kernel under test, nor for bad usage."""
    done = harness("check", "--candidate", "faulty:BreaksARule", "--rule", "QUANT", "--problem", SMALL)
    assert done.code == 70
    assert "ZeroDivisionError" in done.err
    assert "this is a defect of the harness, not of the candidate" in done.err
    assert f"QUANT on {SMALL}" in done.err
    assert "PASS" not in done.out
    assert (done.record.verdict, "ZeroDivisionError" in done.record.errors[0]) == (Verdict.UNKNOWN, True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_the_record_so_far_and_no_process(
    command: list[str], environment: dict[str, str], tmp_path: Path, number: int, code: int
) -> None:
    arguments = [
        "check",
        "--candidate",
        "faulty:Sleeps",
        "--rule",
        "QUANT",
        "--rule",
        "ACT",
        "--problem",
        SMALL,
    ]
    process = subprocess.Popen(
        [*command, *arguments, "--out", str(tmp_path)],
        cwd=CANDIDATES, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen = ""
    for line in process.stderr:
        seen += line
        if sleeping := re.search(r"sleeping in process (\d+)", line):
            break
    else:
        pytest.fail(seen)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code
    record = load_record(tmp_path)
    assert record.interrupted
    assert record.verdict is Verdict.UNKNOWN
    assert [(r.rule, r.verdict) for r in record.rules] == [("QUANT", Verdict.PASS)]
    assert "interrupted" in (tmp_path / "report.html").read_text().lower()
    assert "UNKNOWN: interrupted" in out
    _gone(int(sleeping[1]))


def test_a_candidate_does_not_outlive_a_harness_that_was_killed(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """CI ends a job by SIGKILL; a hanging kernel must not keep the GPU for the next one."""
    process = subprocess.Popen(
        [*command, "check", "--candidate", "faulty:Sleeps", "--rule", "ACT", "--problem", SMALL, "--out", str(tmp_path)],
        cwd=CANDIDATES, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid = next(int(m[1]) for line in process.stderr if (m := re.search(r"sleeping in process (\d+)", line)))
    process.kill()
    process.wait()
    process.stderr.close()
    _gone(pid)


def _gone(pid: int) -> None:
    """Wait for a process to end; one that init has not yet collected counts as ended."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")

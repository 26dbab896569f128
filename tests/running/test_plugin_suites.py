"""`pytest suites`: the same exit codes as the command, the same record, whatever pytest itself would have exited with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.records.record import RunRecord, load_record
from harness.verdict import Verdict

REPOSITORY = Path(__file__).parent.parent.parent
CANDIDATES = REPOSITORY / "tests" / "candidates"
SOME = ("suites/test_numbers.py", "suites/test_sessions.py", "--moe-rule-seconds", "1000")
KEEP = "quantized or graph"


@pytest.fixture(scope="module")
def recorded(run_pytest, tmp_path_factory: pytest.TempPathFactory):
    """Run a session that keeps its record."""

    def run(*arguments: str):
        folder = tmp_path_factory.mktemp("out")
        session = run_pytest(*arguments, "--moe-record", str(folder))
        session.folder = folder
        return session

    return run


@pytest.fixture(scope="module")
def alone(recorded):
    """A session that passes: one rule that is judged and one that says nothing about a CPU candidate."""
    return recorded(*SOME, "-k", KEEP, "--moe-candidate", "eager")


@pytest.fixture(scope="module")
def failing(recorded, tmp_path_factory: pytest.TempPathFactory):
    junit = tmp_path_factory.mktemp("junit") / "junit.xml"
    session = recorded(
        "suites/test_numbers.py", "-k", "gemm", "--moe-candidate", "faulty:Doubled", "--junitxml", str(junit)
    )
    session.junit = junit
    return session


def test_pass_is_0_with_record_report_and_one_line_of_summary(alone) -> None:
    assert (alone.code, alone.record.verdict) == (0, Verdict.PASS), alone.out
    assert re.search(
        r"^PASS: 1 results on eager: [\d,]+ elements compared, all of them legal; up to experts 256, .*$",
        alone.out,
        re.MULTILINE,
    )
    assert f"report: {alone.folder / 'report.html'}" in alone.out
    assert (alone.folder / "report.html").exists()
    assert {r.rule for r in alone.record.rules if not r.skipped} == {"QUANT"}
    assert [(s.what, s.reason) for s in alone.record.skips] == [
        ("GRAPH on eager", "CUDA graphs need a CUDA device")
    ]
    assert "SKIPPED" in alone.out
    assert "CUDA graphs need a CUDA device" in alone.out
    assert alone.record.seconds > 0
    (candidate,) = alone.record.candidates
    assert (candidate.requested, candidate.ran, candidate.missing_stages) == (True, True, ["prepare"])


def counts(record: RunRecord) -> dict[str, object]:
    return {
        r.rule: (r.verdict, r.examples, r.empty, r.powerless, r.compared, r.judged, r.worst_ratio, r.skipped)
        for r in record.rules
    } | {"traps": record.traps, "skips": record.skips, "missing": record.missing_traps}


def test_two_workers_find_what_one_process_finds(alone, recorded) -> None:
    both = recorded(*SOME, "-k", KEEP, "-n", "2")
    assert (both.code, both.record.verdict) == (0, Verdict.PASS), both.out
    assert counts(both.record) == counts(alone.record)
    assert both.record.reason == alone.record.reason
    assert len(both.record.candidates) == 1
    assert f"PASS: {both.record.reason}" in both.out


def test_fail_is_1_with_the_message_and_without_the_harnesss_own_trace(failing) -> None:
    assert (failing.code, failing.record.verdict) == (1, Verdict.FAIL), failing.out
    (failure,) = failing.record.rules[0].failures
    assert failure.message in failing.out
    assert "suite_run.py" not in failing.out
    assert failing.out.rstrip().splitlines()[-1].startswith("1 failed") or "1 failed" in failing.out
    assert "FAIL: 1 of 1 rules failed; first: GEMM on faulty:Doubled" in failing.out


def test_junit_holds_the_failures_message_and_the_candidate(failing) -> None:
    (failure,) = failing.record.rules[0].failures
    (case,) = ET.parse(failing.junit).getroot().iter("testcase")  # noqa: S314 - our own file
    (element,) = case.iter("failure")
    assert failure.message in element.text
    assert failure.message.splitlines()[0] in element.get("message")
    assert [p.attrib for p in case.iter("property")] == [{"name": "candidate", "value": "faulty:Doubled"}]


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_the_real_kernel_on_a_machine_without_a_gpu_is_2_with_the_reason(
    recorded, workers: tuple[str, ...]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    session = recorded("suites/test_layer.py", "--moe-candidate", "flashinfer-cutedsl", *workers)
    assert (session.code, session.record.verdict) == (2, Verdict.UNKNOWN), session.out
    assert "4 failed" in session.out, "no test passes"
    (candidate,) = session.record.candidates
    assert f"UNKNOWN: flashinfer-cutedsl cannot run here: {candidate.reason}" in session.out


def test_a_session_in_which_everything_is_skipped_is_2(run_pytest) -> None:
    """pytest by itself exits 0, which would look like a pass. Without --record it is no different."""
    session = run_pytest("suites/test_sessions.py", "-k", "graph", "--moe-candidate", "eager")
    assert session.code == 2, session.out
    assert "1 skipped" in session.out
    assert "UNKNOWN: no rule was judged" in session.out


def test_a_defect_of_the_harness_is_70_and_no_fail_of_the_candidate(recorded) -> None:
    session = recorded("suites/test_numbers.py", "-k", "quantized", "--moe-candidate", "faulty:BreaksARule")
    assert session.code == 70, session.out
    assert "INTERNAL ERROR: a defect of the harness, not of faulty:BreaksARule: QUANT on " in session.out
    assert "ZeroDivisionError" in session.out
    assert session.record.verdict is Verdict.UNKNOWN
    assert session.record.errors[0].startswith("QUANT on ")


def test_a_failing_test_of_the_users_own_beside_an_unknown_is_1(run_pytest, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    assert 1 == 2\n")
    session = run_pytest(
        str(tmp_path), "suites/test_numbers.py", "-k", "mine or gemm", "--moe-candidate", "faulty:Unsupported"
    )
    assert session.code == 1, session.out
    assert "2 failed" in session.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--moe-candidate", "eagre"), "unknown candidate 'eagre': did you mean 'eager'?"),
        (("--moe-profile", "quik"), "unknown profile 'quik': did you mean 'quick'?"),
        (("--moe-record", "faulty.py/out"), "--moe-record: faulty.py/out cannot be created"),
        (("--moe-rule-seconds", "-1"), "--moe-rule-seconds must not be negative, got -1.0"),
        (("--moe-candidate", "eagre", "-n", "2"), "did you mean 'eager'?"),
    ],
)
def test_bad_usage_is_64_before_anything_is_collected(
    run_pytest, arguments: tuple[str, ...], words: str
) -> None:
    session = run_pytest("suites", *arguments)
    assert session.code == 64, session.out
    assert f"harness: {words}" in session.out + session.err or words in session.out + session.err
    assert "collected" not in session.out
    assert "Traceback" not in session.out + session.err


@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [
        ((), signal.SIGINT, 130),
        ((), signal.SIGTERM, 143),
        pytest.param(("-n", "1"), signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_an_interrupt_leaves_the_record_and_no_process(
    workers: tuple[str, ...], number: int, code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", str(REPOSITORY / "suites/test_numbers.py"),
            "-k", "activated", "--moe-candidate", "faulty:Sleeps", "--moe-record", str(tmp_path), *workers,
        ],
        cwd=CANDIDATES, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    seen = ""
    for line in process.stdout:
        seen += line
        if sleeping := re.search(r"sleeping in process (\d+)", line):
            break
    else:
        pytest.fail(seen)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code, out
    for _ in range(100):
        if not _running(int(sleeping[1])):
            break
        time.sleep(0.05)
    assert not _running(int(sleeping[1]))
    if not workers:
        record = load_record(tmp_path)
        assert record.interrupted
        assert record.verdict is Verdict.UNKNOWN


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

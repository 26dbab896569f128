"""Workers that crash, hang, cannot start or are interrupted: each case gets its result, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from harness.compile import pool as pool_module
from harness.compile.pool import Pool, StartError

WORKER = Path(__file__).with_name("fake_worker.py")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def pool(log):
    return lambda jobs=2, timeout=30.0: Pool(
        jobs, timeout, command=lambda arch: [sys.executable, str(WORKER), arch, str(log)]
    )


def run(pool, cases):
    results = {}
    pool.run(cases, lambda case, result: results.update({case: result}))
    return results


def starts(log):
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith("start")]


def alive(log):
    pids = [int(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("start")]
    return [
        pid
        for pid in pids
        if Path(f"/proc/{pid}").exists() and "fake_worker" in Path(f"/proc/{pid}/cmdline").read_text()
    ]


def test_every_case_of_both_architectures_gets_its_result_and_workers_are_reused(
    pool, log, case, monkeypatch
):
    monkeypatch.setenv("CUTE_DSL_LINEINFO", "1")  # a switch of the user's shell does not reach the compiler
    cases = [case(arch=arch, n=8 * n) for n in range(1, 16) for arch in ("sm_100a", "sm_103a")]
    results = run(pool(), cases)
    assert set(results) == set(cases)
    assert {r.registers for r in results.values()} == {7}
    assert set(starts(log)) == {"sm_100a", "sm_103a"}
    assert len(starts(log)) <= 4
    assert alive(log) == []


def test_a_crash_costs_one_case_and_says_how_the_process_ended(pool, log, case):
    cases = [case(m=101), case(m=1), case(m=104), case(m=2)]
    results = run(pool(jobs=1), cases)
    assert [results[c].status for c in cases] == ["crashed", "compiled", "crashed", "compiled"]
    assert "SIGABRT: LLVM ERROR" in results[cases[0]].reason
    assert "exit code 3: it said nothing" in results[cases[2]].reason
    assert starts(log) == ["sm_100a"] * 3


def test_a_case_that_hangs_is_ended_after_its_time(pool, log, case):
    results = run(pool(jobs=1, timeout=0.5), [case(m=102), case(m=1)])
    assert [results[c].status for c in (case(m=102), case(m=1))] == ["timeout", "compiled"]
    assert results[case(m=102)].reason == "not compiled within 0.5 s"
    assert alive(log) == [], "the case that hangs for an hour is not waited for"


@pytest.mark.parametrize(
    ("mode", "ours", "words"),
    [
        ("ours", True, "cutlass has no cute.compile"),
        ("theirs", False, "cutlass has no cute.compile"),
        ("dies", False, "died at its start: no space left on device"),
    ],
)
def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(
    pool, log, case, monkeypatch, mode, ours, words
):
    monkeypatch.setenv("FAKE_START", mode)
    with pytest.raises(StartError, match=words) as caught:
        run(pool(), [case(m=m) for m in range(1, 9)])
    assert caught.value.ours is ours
    assert alive(log) == []


def test_a_worker_that_never_becomes_ready_is_not_waited_for_forever(monkeypatch, case):
    monkeypatch.setattr(pool_module, "START_SECONDS", 0.3)
    sleeping = Pool(1, 30.0, command=lambda _arch: [sys.executable, "-c", "import time; time.sleep(3600)"])
    with pytest.raises(StartError, match="did not start within"):
        run(sleeping, [case()])


def test_an_interrupt_keeps_what_is_done_and_ends_the_workers(pool, log, case):
    results = {}
    hanging = pool(jobs=1, timeout=3600.0)
    interrupt = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))

    def take(done, result):
        results[done] = result
        interrupt.start()

    with pytest.raises(KeyboardInterrupt):
        hanging.run([case(m=1), case(m=102), case(m=2)], take)
    assert set(results) == {case(m=1)}
    assert alive(log) == []


def test_an_error_while_a_result_is_stored_ends_the_run(pool, log, case):
    def full(_case, _result):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        pool().run([case(m=m) for m in range(1, 9)], full)
    assert alive(log) == []

"""How long is waited, on a clock that the tests turn: hanging, slow on a busy machine, and slow for once are told apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from harness.running import waiting
from harness.running.outcome import Outcome, Status
from harness.running.waiting import GIVEN_UP, HANGS, Wait, processor_seconds

LIMIT = 60.0
Watch = Callable[..., tuple[float, Outcome | None]]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Wait for up to `until` seconds for a process that uses `share` of a processor until second `busy`."""

    def watched(
        share: float, *, busy: float = 1e9, until: float = 1e5, hangs: float = HANGS
    ) -> tuple[float, Outcome | None]:
        now = 0.0
        monkeypatch.setattr(waiting.time, "monotonic", lambda: now)
        monkeypatch.setattr(waiting, "processor_seconds", lambda _: 7 + share * min(now, busy))
        wait = Wait(1, LIMIT, hangs)
        while now < until:
            now += 0.5
            if over := wait.over():
                return now, over
        return now, None

    return watched


def test_a_process_that_does_nothing_hangs_after_the_limit(watch: Watch) -> None:
    now, over = watch(0.0)
    assert over is not None
    assert over.status is Status.TIMEOUT
    assert over.fails
    assert LIMIT < now < LIMIT * 1.3
    assert over.error == "it hangs: no answer, and nothing done for 60 s (idle)"


def test_one_that_stops_doing_anything_hangs_a_limit_later(watch: Watch) -> None:
    now, over = watch(1.0, busy=200)
    assert over is not None
    assert over.status is Status.TIMEOUT
    assert 200 + LIMIT <= now < 200 + LIMIT * 1.3


@pytest.mark.parametrize("share", [1.0, 8.0])
def test_one_that_computes_may_take_ten_times_the_limit_and_hangs_then(watch: Watch, share: float) -> None:
    assert watch(share, until=HANGS * LIMIT - 1) == (HANGS * LIMIT - 1, None)
    now, over = watch(share)
    assert over is not None
    assert over.status is Status.TIMEOUT
    assert HANGS * LIMIT < now < HANGS * LIMIT * 1.1
    assert over.error == "it hangs: no answer within 600 s of processor time"


def test_one_that_gets_a_tenth_of_a_busy_machine_is_slow_and_no_failure(watch: Watch) -> None:
    now, over = watch(0.1)
    assert over is not None
    assert over.status is Status.SLOW
    assert over.lost
    assert not over.fails
    assert now > GIVEN_UP * LIMIT
    assert "of which the machine gave it 18" in over.error


def test_one_that_has_hung_before_is_given_up_at_the_limit_as_slow(watch: Watch) -> None:
    now, over = watch(1.0, hangs=1)
    assert over is not None
    assert over.status is Status.SLOW
    assert LIMIT < now < LIMIT * 1.3
    assert watch(0.0, hangs=1)[1].status is Status.TIMEOUT, "idle is hanging, whatever it did before"


def test_the_time_of_a_session_counts_what_its_leader_started() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\n"
    leader = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin!r}])\nprint('done', flush=True)\ninput()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", leader],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"done\n"
    assert processor_seconds(process.pid) >= 0.3
    process.communicate(b"\n")
    assert processor_seconds(process.pid) == 0, "no such session any more"
    assert processor_seconds(os.getsid(0)) > 0

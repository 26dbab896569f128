"""Where a candidate lives while it is judged: in this process, or in a child that may crash or hang.

A child loads the candidate, probes it, and judges problem after problem. If it dies or exceeds its time, that problem
is answered CRASHED, TIMEOUT or SLOW (harness.running.waiting) and the next one gets a fresh child. The parent needs no torch.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from harness.candidates import CANDIDATES
from harness.candidates.errors import ORDINARY, CandidateStartError, Exceptions, in_words
from harness.faults.named import load_named, start_named
from harness.processes import own_module
from harness.running.outcome import (
    Command,
    Description,
    Outcome,
    Status,
    WorkerSettings,
    outcome_from,
    to_line,
)
from harness.running.waiting import HANGS, Wait
from harness.verdict import UsageError

START_SECONDS = 300.0  # loading torch and compiling a first kernel
POLL_SECONDS = 0.5  # between two looks at whether a silent process is still there
DEFAULT_ENVIRONMENT = {
    # Threads that spin while they wait make torch ten times slower as soon as the cores are shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    # torch then asks for huge pages for tensors above 2 MiB: otherwise each new one costs a page fault every 4 KiB.
    "THP_MEM_ALLOC_ENABLE": "1",
    # glibc keeps what is freed for the next tensor, instead of asking the kernel for zeroed pages again. Up to 256 MiB at
    # a time and 1 GiB in all: larger ones cost more to fill than to get.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""Of a candidate's process, where the user's own says nothing else."""
FOREIGN = "something other than the harness wrote into the pipe that the candidate's process answers through"


class StartTimeoutError(CandidateStartError):
    """It did not start in time, which says nothing about it."""


class Session(Protocol):
    """A candidate that answers judgements.

    Attributes:
        left_out: stages that turned out not to be implemented, each with the rule that found out; they are taken to be
            missing.
    """

    left_out: dict[str, str]

    def describe(self) -> Description:
        """Return traits, measurements and stages."""

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:
        """Judge one problem within a time limit, see harness.running.waiting."""

    def diagnose(
        self, rule_id: str, problem: str, command: str, seconds: float, likely: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return which known faults explain a failure, within a time limit; `likely` ones are tested in any case."""

    def close(self) -> None:
        """End it."""


class InProcess:
    """The candidate in this process: faster to start, and a crash ends everything.

    Args:
        candidate: an object of the candidate protocol that can run here.
        threads: of torch, 0 for its own choice.
        blamed, spared: as harness.running.judge.Watched takes them.
    """

    def __init__(
        self, candidate: Any, *, threads: int = 0, blamed: Exceptions = ORDINARY, spared: Exceptions = ()
    ) -> None:
        from harness.running.judge import Judge

        self._judge = Judge(candidate, threads=threads, blamed=blamed, spared=spared)
        self.left_out: dict[str, str] = {}

    def describe(self) -> Description:
        """Return traits, measurements and stages."""
        return self._judge.describe()

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:  # noqa: ARG002 - no way to enforce it here
        """Judge one problem; the time limit cannot be kept in this process."""
        self._judge.leave_out(self.left_out)
        return self._judge.judge(rule_id, problem)

    def diagnose(
        self,
        rule_id: str,
        problem: str,
        command: str,
        seconds: float,  # noqa: ARG002 - as above
        likely: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Return which known faults explain a failure; `command` repeats the diagnosis."""
        self._judge.leave_out(self.left_out)
        return self._judge.diagnose(rule_id, problem, command, likely)

    def close(self) -> None:
        """Leave it: the candidate goes with the process."""


class Child:
    """The candidate in a child process, restarted after a crash or a time-out.

    Args:
        name: candidate name, as on the command line.
        threads: threads of torch in the child, 0 for its own choice.
        memory_gib: limit of the child's data segment, 0 for none.
        environment: added to the child's environment (CUDA_VISIBLE_DEVICES, for example).

    Raises:
        CandidateStartError: it cannot run here, or did not start, with the reason.
        UsageError: there is no such candidate.
    """

    def __init__(
        self, name: str, *, threads: int = 0, memory_gib: float = 0, environment: dict[str, str] | None = None
    ) -> None:
        self._settings = WorkerSettings(name, threads, memory_gib)
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._seal = b""  # what each of the child's answers begins with
        self.left_out: dict[str, str] = {}
        self._hung = self._killed = False
        self._described = self._start()

    def describe(self) -> Description:
        """Return traits, measurements and stages."""
        return self._described

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:
        """Judge one problem; CRASHED, TIMEOUT and SLOW end the child, and the next call starts another."""
        if self._process is None and self._killed:
            return Outcome(Status.CRASHED, "the candidate's process was ended")
        if self._process is None:
            try:
                self._start()
            except CandidateStartError as error:
                status = Status.SLOW if isinstance(error, StartTimeoutError) else Status.CRASHED
                return Outcome(status, f"the candidate did not start again: {error}")
        hangs = 1 if self._hung else HANGS  # once is enough to wait that long for
        outcome = self._ask(Command(rule_id, problem, without=list(self.left_out)), seconds, hangs)
        self._hung |= outcome.status is Status.TIMEOUT
        return outcome

    def diagnose(
        self, rule_id: str, problem: str, command: str, seconds: float, likely: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return which known faults explain a failure; nothing where the child dies of it or takes too long."""
        if self._process is None:
            return []
        asked = Command(rule_id, problem, command, list(self.left_out), likely=list(likely))
        return self._ask(asked, seconds).diagnosis

    def keep_calls(
        self, rule_id: str, problem: str, path: Path, seconds: float, *, before_each: bool
    ) -> Outcome:
        """Repeat a failing problem and write its calls into a file: KEPT, or what became of the child."""
        if self._process is None:
            self._start()
        return self._ask(Command(rule_id, problem, keep=str(path.absolute()), each=before_each), seconds)

    def kill(self) -> None:
        """Kill the child from another thread than the one that asks it, for good: that one is answered CRASHED."""
        self._killed, process = True, self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the child with everything that it started."""
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (self._to_child, self._from_child):
            os.close(pipe)

    def _start(self) -> Description:
        read_commands, self._to_child = os.pipe()
        self._from_child, write_answers = os.pipe()
        settings = replace(self._settings, commands=read_commands, answers=write_answers)
        environment = {
            **DEFAULT_ENVIRONMENT,
            **os.environ,
            **self._environment,
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            own_module("harness.running.worker", to_line(settings)),
            pass_fds=(read_commands, write_answers),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if _has_fileno(sys.stderr) else None,
            start_new_session=True,  # Ctrl-C is the parent's to handle, and close() kills the whole group
        )
        os.close(read_commands)
        os.close(write_answers)
        self._seal = secrets.token_hex(16).encode() + b" "
        try:
            with contextlib.suppress(OSError):  # it is gone already: what it is asked next says how
                self._send(self._seal.decode().strip())
            answer = self._receive(START_SECONDS)
            if answer.status is Status.LOADED:
                answer = self._receive(START_SECONDS)
                if answer.lost and self._settings.probe:
                    # It died of the probe, so it may die of a problem: that is for the rules to find, as a failure.
                    self.close()
                    self._settings = replace(self._settings, probe=False)
                    return self._start()
        except BaseException:  # an interrupt while it starts must not leave it behind
            self.close()
            raise
        if answer.description is None:
            self.close()
            kinds = {Status.USAGE: UsageError, Status.TIMEOUT: StartTimeoutError}
            raise kinds.get(answer.status, CandidateStartError)(answer.error or "no reason given")
        return answer.description

    def _ask(self, command: Command, seconds: float, hangs: float = 0) -> Outcome:
        """Send a command and wait for its outcome, `seconds` or by harness.running.waiting; a child that is lost is ended."""
        try:
            self._send(to_line(command))
            outcome = self._receive(seconds, hangs)
        except OSError:
            outcome = Outcome(Status.CRASHED, self._how_it_died())
        if outcome.lost:
            self.close()
        return outcome

    def _receive(self, seconds: float, hangs: float = 0) -> Outcome:
        end = time.monotonic() + seconds
        wait = Wait(self._process.pid, seconds, hangs) if self._process and hangs else None
        while b"\n" not in self._buffer:
            if not self._seal.startswith(self._buffer[: len(self._seal)]):
                return Outcome(Status.CRASHED, FOREIGN)
            pause = min(POLL_SECONDS, seconds / 10 if wait else max(0.0, end - time.monotonic()))
            # What it forked may outlive it with the other end of the pipe: that it is gone counts, too.
            gone = self._process is None or self._process.poll() is not None
            ready, _, _ = select.select([self._from_child], [], [], 0 if gone else pause)
            chunk = os.read(self._from_child, 1 << 20) if ready else b""
            if not chunk and (ready or gone):
                return Outcome(Status.CRASHED, self._how_it_died())
            if not chunk and wait is None and time.monotonic() >= end:
                return Outcome(Status.TIMEOUT, f"no answer within {seconds:g} s")
            if not chunk and wait and (over := wait.over()):
                return over
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        if not line.startswith(self._seal):
            return Outcome(Status.CRASHED, FOREIGN)
        return outcome_from(line.removeprefix(self._seal))

    def _send(self, line: str) -> None:
        os.write(self._to_child, line.encode() + b"\n")

    def _how_it_died(self) -> str:
        if self._process is None:
            return "the candidate's process is gone"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        if code is None:
            return "the candidate's process lives, but its pipe for answers was closed"
        if code < 0:
            known = -code in list(signal.Signals)  # not those for real time
            return f"the candidate's process was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
        return f"the candidate's process exited with {code}"


def open_session(name: str, *, threads: int = 0, memory_gib: float = 0, isolate: bool = True) -> Session:
    """Load a candidate where it will be judged.

    Args:
        name: as on the command line.
        threads: of torch, 0 for its own choice.
        memory_gib: limit of a child's data segment, 0 for none.
        isolate: in a child process.

    Raises:
        CandidateStartError: it cannot run here, with the reason.
        UsageError: there is no such candidate.
    """
    # The names of built-in candidates are checked here, before a process is started for them.
    if name.partition("+")[0] not in CANDIDATES and ":" not in name:
        load_named(name)
    if isolate:
        return Child(name, threads=threads, memory_gib=memory_gib)
    candidate = start_named(name, spared=(KeyboardInterrupt,))
    try:
        return InProcess(candidate, threads=threads, blamed=(BaseException,), spared=(KeyboardInterrupt,))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as in a child: any reason why a candidate does not start is the answer
        raise CandidateStartError(in_words(error)) from error


def _has_fileno(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True

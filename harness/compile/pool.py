"""Several workers at once: each thread here owns one process of worker.py, feeds it cases and outlives its crashes."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from harness.compile.case import CompileCase
from harness.compile.result import result_from
from harness.compile.switches import worker_environment
from harness.processes import own_module
from harness.records.parts.compile import CompileResult

START_SECONDS = 300  # importing the packages takes 5 seconds on an idle machine
_TAIL = 300  # characters of a crashed worker's last words
# A worker is started anew for another architecture only if as many cases wait there.
_WORTH_A_START = 6


class StartError(Exception):
    """A worker could not start. `ours`: because this project lacks something, not the packages."""

    def __init__(self, reason: str, *, ours: bool = False) -> None:
        super().__init__(reason)
        self.ours = ours


def default_command(arch: str) -> list[str]:
    """Return the command line of a worker."""
    return own_module("harness.compile.worker", arch)


class Pool:
    """Compiles cases.

    Args:
        jobs: processes at once.
        timeout: seconds for one case.
        keep: folder for PTX and cubins, or None.
        command: the worker's command line for an architecture.
    """

    def __init__(
        self,
        jobs: int,
        timeout: float,
        keep: Path | None = None,
        command: Callable[[str], list[str]] = default_command,
    ) -> None:
        self._jobs = jobs
        self._timeout = timeout
        self._keep = keep
        self._command = command
        self._lock = threading.Lock()
        self._workers: set[_Worker] = set()
        self._stop = False
        self._errors: list[BaseException] = []

    def run(self, cases: list[CompileCase], finished: Callable[[CompileCase, CompileResult], None]) -> None:
        """Compile every case; `finished` is called for each, from one thread at a time.

        Raises:
            StartError: no worker can start.
            KeyboardInterrupt: and all workers are gone.
        """
        waiting: dict[str, deque[CompileCase]] = {}
        for case in cases:
            waiting.setdefault(case.arch, deque()).append(case)
        with tempfile.TemporaryDirectory(prefix="harness-compile-") as scratch:
            # Not Thread.join: after an interrupt it takes a thread that still runs for one that has ended.
            ended: queue.SimpleQueue[None] = queue.SimpleQueue()

            def serve() -> None:
                self._serve(waiting, Path(scratch), finished)
                ended.put(None)

            running = min(self._jobs, len(cases))
            for _ in range(running):
                threading.Thread(target=serve, daemon=True).start()
            try:
                while running:
                    ended.get()
                    running -= 1
            finally:
                self._halt()
                while running:
                    ended.get()
                    running -= 1
        if self._errors:
            raise self._errors[0]

    def _halt(self) -> None:
        """Let no further case begin, and end the ones that are being compiled."""
        with self._lock:
            self._stop = True
            for worker in self._workers:
                worker.kill()

    def _serve(
        self,
        waiting: dict[str, deque[CompileCase]],
        scratch: Path,
        finished: Callable[[CompileCase, CompileResult], None],
    ) -> None:
        worker: _Worker | None = None
        try:
            while (case := self._next(waiting, worker.arch if worker else None)) is not None:
                if worker is None or worker.arch != case.arch or worker.dead:
                    if worker is not None:
                        self._retire(worker)
                    worker = _Worker(self._command(case.arch), case.arch, scratch, self._keep)
                    with self._lock:
                        self._workers.add(worker)
                        if self._stop:
                            break
                    worker.start()
                result = worker.compile(case, self._timeout)
                with self._lock:
                    if not self._stop:
                        finished(case, result)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            with self._lock:
                if not self._stop:
                    self._errors.append(error)
            self._halt()
        finally:
            if worker is not None:
                self._retire(worker)

    def _next(self, waiting: dict[str, deque[CompileCase]], arch: str | None) -> CompileCase | None:
        """Return the next case: of the worker's own architecture while there is one, else where most wait."""
        with self._lock:
            if self._stop:
                return None
            if arch is not None and waiting[arch]:
                return waiting[arch].popleft()
            fullest = max(waiting.values(), key=len)
            # Near the end another start costs more than it helps, as long as somebody else is at work there.
            busy = any(w.arch == fullest[0].arch and not w.dead for w in self._workers) if fullest else False
            if not fullest or (busy and len(fullest) < _WORTH_A_START):
                return None
            return fullest.popleft()

    def _retire(self, worker: _Worker) -> None:
        worker.close()
        with self._lock:
            self._workers.discard(worker)


class _Worker:
    """One process, started when it is needed."""

    def __init__(self, command: list[str], arch: str, scratch: Path, keep: Path | None) -> None:
        self.arch = arch
        self.dead = False
        self._folder = Path(tempfile.mkdtemp(dir=scratch))
        self._log: IO[bytes] = (self._folder / "stderr").open("w+b")
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=worker_environment(arch, self._folder, keep),
            text=True,
            start_new_session=True,  # an interrupt at the terminal reaches this process only
        )

    def start(self) -> None:
        """Wait until the packages are imported."""
        line, late = self._read(START_SECONDS)
        if not line:
            raise StartError(
                f"the worker for {self.arch} "
                + (
                    f"did not start within {START_SECONDS} s"
                    if late
                    else f"died at its start: {self._last_words()}"
                )
            )
        answer = json.loads(line)
        if not answer["ready"]:
            raise StartError(answer["reason"], ours=answer["ours"])

    def compile(self, case: CompileCase, timeout: float) -> CompileResult:
        """Compile a case; a crash or a timeout is its result, and the worker is dead then."""
        try:
            assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
            self._process.stdin.write(json.dumps({"case": str(case)}) + "\n")
            self._process.stdin.flush()
            line, late = self._read(timeout)
        except OSError:
            line, late = "", False
        if line.endswith("\n"):
            return result_from(json.loads(line), str(case))
        self.kill()
        code = self._process.wait()
        if late:
            return CompileResult("timeout", reason=f"not compiled within {timeout:g} s")
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return CompileResult(
            "crashed", reason=f"the compiler's process ended with {cause}: {self._last_words()}"
        )

    def kill(self) -> None:
        """End the process at once."""
        self.dead = True
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """End the process and let go of its pipes."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # unsent input of a dead process
                    continue

    def _read(self, timeout: float) -> tuple[str, bool]:
        """Return the next line, empty at the end, and whether the time ran out."""
        late = threading.Event()

        def expire() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(timeout, expire)
        timer.start()
        try:
            assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
            return self._process.stdout.readline(), late.is_set()
        finally:
            timer.cancel()

    def _last_words(self) -> str:
        self._log.flush()
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split())
        return text[-_TAIL:] or "it said nothing"

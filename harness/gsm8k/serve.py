"""`--serve "COMMAND"`: a server that lives as long as the run, in a process group of its own, with its log beside the record.

Engines start processes that outlive their parent; the group is what is stopped, at the end of the run however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from harness.ending import note_sigterm
from harness.gsm8k.errors import one_line
from harness.gsm8k.preflight import unreachable
from harness.verdict import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType, TracebackType

    from harness.gsm8k.credentials import Redactor
    from harness.gsm8k.settings import Gsm8kSettings

LOG = "server.log"
PORT = "{port}"
STOP_S = 20.0
TAIL_LINES = 20
_TAIL_BYTES = 64 << 10
_POLL_S = 0.1


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServedCommand:
    """A running command and its log. Use as a context manager; leaving it stops every process of its group.

    Args:
        command: for the shell, with its port filled in.
        log: what the command writes goes here, an older log is replaced.
        redactor: knows what must not be shown; the log is cleaned when the command has ended.
    """

    def __init__(self, command: str, log: Path, redactor: Redactor) -> None:
        self._command = command
        self._log = log
        self._redactor = redactor
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S602 - the user's own command line
                self._command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._signal(signal.SIGTERM)
            self._wait(STOP_S)
        finally:  # a second Ctrl-C comes here at once
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._clean_log()

    async def end(self) -> str:
        """Wait until the command ends by itself; return how it ended and the last line of its log."""
        while self._process.poll() is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(_POLL_S)
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        seconds = time.monotonic() - self._started
        last = one_line(self.tail()[-1]) if self.tail() else "its log is empty"
        hint = "" if code else " (--serve needs a command that stays in the foreground)"
        return f"the server of --serve ended with {how} after {seconds:.0f} s{hint}; {LOG} ends: {last}"

    def tail(self) -> list[str]:
        """Return the last lines of the log that are not empty, without secrets."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            text = self._redactor.body(log.read()).decode("utf-8", "replace")
        return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _wait(self, seconds: float) -> None:
        """Wait until no process of the group is left."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._process.poll()
            try:
                os.killpg(self._process.pid, 0)
            except (ProcessLookupError, PermissionError):
                return
            time.sleep(_POLL_S)

    def _clean_log(self) -> None:
        """Take secrets out of the log: engines print their arguments, and the folder is kept as an artefact."""
        raw = self._log.read_bytes()
        cleaned = self._redactor.body(raw)
        if cleaned != raw:
            self._log.write_bytes(cleaned)


@contextmanager
def serving(settings: Gsm8kSettings, redactor: Redactor) -> Iterator[ServedCommand | None]:
    """Run the command of `--serve` as long as the block, nothing where there is none.

    Raises:
        UsageError: something answers at the base URL already: the run would judge that.
    """
    if not settings.serve:
        yield None
        return
    if not unreachable(settings.endpoint):
        raise UsageError(
            f"--serve: something answers at {settings.endpoint.display} already; stop it, or give --serve a {PORT}"
        )
    command = settings.serve.replace(PORT, str(settings.endpoint.port))
    with _ending_raises(), ServedCommand(command, settings.out / LOG, redactor) as served:
        yield served


@contextmanager
def _ending_raises() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does: by default they end this process and leave the server."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - their signature
        if number == signal.SIGTERM:
            note_sigterm()
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not in the main thread
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

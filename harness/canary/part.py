"""The canary as a part of a run: start its server with a candidate, gate it with `harness gsm8k`, stop it.

The server is a process of its own, so a candidate that crashes or hangs costs an answer, not the run.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.processes import own_module
from harness.records.parts.canary import CanaryRun

MIN_ACCURACY = 0.8
"""Chosen (docs/bounds.md, "Chosen numbers"): far below a healthy canary, far above a broken one, so that 64 questions decide."""
CONCURRENCY = 64
START_SECONDS = 120.0
MAX_TOKENS = 192


@dataclass(frozen=True)
class Served:
    """A running server: its base URL, and the seconds from its start until it listened."""

    url: str
    ready_seconds: float


class ServerStartError(Exception):
    """The canary's server did not start: the reason, from its own output."""


@contextmanager
def served(candidate: str, *options: str, seconds: float = START_SECONDS) -> Iterator[Served]:
    """Run `harness canary serve` with a candidate for as long as the block lasts.

    Args:
        candidate: name of the candidate, faults included.
        options: further options of the command.
        seconds: longest wait until it listens.

    Raises:
        ServerStartError: it ended, or did not listen in time.
    """
    command = own_module("harness.cli", "canary", "serve", "--port", "0")
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, "--candidate", candidate, *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        try:
            url = _listening(process, started + seconds)
            if url is None:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=2)  # its output ends a moment before it does
                ended = process.poll()
                how = f"exited with {ended}" if ended is not None else f"did not listen within {seconds:g} s"
                raise ServerStartError(
                    f"the canary's server {how}: {said[-1] if said else 'it said nothing'}"
                )
            yield Served(url, time.monotonic() - started)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _listening(process: subprocess.Popen[bytes], end: float) -> str | None:
    """Return the URL that the server prints once it listens; None where it ended or took too long."""
    out = process.stdout
    if out is None:
        return None
    buffer = b""
    while time.monotonic() < end:
        ready, _, _ = select.select([out], [], [], max(0.0, end - time.monotonic()))
        chunk = os.read(out.fileno(), 4096) if ready else b""
        if not chunk:
            return None
        buffer += chunk
        for line in buffer.decode(errors="replace").splitlines(keepends=True):
            if line.startswith("listening on ") and line.endswith("\n"):
                return line.removeprefix("listening on ").strip()
    return None


def run_part(candidate: str, *, questions: int, folder: Path, seed: int = 0) -> CanaryRun:
    """Gate the canary through one candidate, over HTTP.

    Args:
        candidate: name of the candidate, faults included.
        questions: how many of the 500.
        folder: where the run of `harness gsm8k` leaves its journal and its own record.
        seed: of the choice of questions.

    Returns:
        One run of `record.canary_part`, its verdict UNKNOWN where the server did not start.
    """
    from harness.gsm8k.credentials import parse_base_url
    from harness.gsm8k.run import run
    from harness.gsm8k.settings import Gsm8kSettings

    command = (
        f"harness canary serve --candidate {shlex.quote(candidate)} --port 8000 & "
        f"harness gsm8k --base-url http://127.0.0.1:8000/v1 --task gsm_canary --questions {questions} "
        f"--seed {seed} --max-tokens {MAX_TOKENS} --min-accuracy {MIN_ACCURACY} --no-sweep --wait-ready 60"
    )
    try:
        with served(candidate) as server:
            settings = Gsm8kSettings(
                endpoint=parse_base_url(server.url),
                out=folder,
                task="gsm_canary",
                questions=questions,
                seed=seed,
                concurrency=CONCURRENCY,
                max_tokens=MAX_TOKENS,
                min_accuracy=MIN_ACCURACY,
                retry_seconds=5.0,
                sweep=False,  # as many requests again, and the server is this project's own
            )
            record = run(settings, ["harness", "gsm8k"])
    except ServerStartError as error:
        return CanaryRun("UNKNOWN", "infra", str(error), candidate=candidate, reproduce=command)
    return CanaryRun(
        **vars(record.gsm8k_run), candidate=candidate, reproduce=command, ready_seconds=server.ready_seconds
    )

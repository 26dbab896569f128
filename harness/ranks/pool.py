"""Ranks as processes of one host: started together, asked together, and ended together when one of them is lost.

The kernels that ranks call have no time limit: whoever waits for a rank that died waits for ever. So the judging process
never takes part in a call. It watches all ranks from outside, says which one died or has not answered, and ends them all.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.processes import own_module
from harness.ranks.collectives import Sizes
from harness.ranks.errors import RankError, RankLostError
from harness.ranks.worker import RankSettings, as_argument

if TYPE_CHECKING:
    from harness.ranks.messages import Channel

    Processes = list[subprocess.Popen[bytes] | None]
    Connect = Callable[[int, str], tuple[Processes, list[Channel]]]

START_SECONDS = 240.0  # loading torch, starting NVSHMEM; shorter than what a candidate is given to start
CALL_SECONDS = (
    30.0  # a call takes milliseconds; shorter than the idle time after which a candidate counts as hanging
)
GRACE_SECONDS = 3.0  # for the other ranks, once one has died or answered with an error


class Pool:
    """A number of ranks, and the calls that all of them make.

    Args:
        ranks: how many.
        library: "gloo" or "deep_ep".
        call_seconds: after which a call without an answer hangs.
        connect: returns the process of each rank, None for one that somebody else started, and its channel; None to start
            all of them here.

    Attributes:
        ranks: how many.
        lost: which rank died or hangs, in words, "" while all are there.

    Raises:
        RankLostError: a rank did not start, with its reason.
    """

    def __init__(
        self, ranks: int, library: str, *, call_seconds: float = CALL_SECONDS, connect: Connect | None = None
    ) -> None:
        self.ranks, self.lost = ranks, ""
        self._seconds, self._calls = call_seconds, 0
        self._folder = tempfile.TemporaryDirectory(prefix="harness-ranks-")
        self._processes, self._channels = (connect or self._spawn)(ranks, library)
        self._end = weakref.finalize(self, _end, self._processes, self._channels, self._folder)
        for channel in self._channels:
            channel.socket.settimeout(call_seconds)
        self._gather("the start", START_SECONDS)

    @property
    def pids(self) -> list[int]:
        """The processes that were started here, in order of the ranks."""
        return [process.pid for process in self._processes if process]

    def _spawn(self, ranks: int, library: str) -> tuple[Processes, list[Channel]]:
        from harness.ranks.messages import Channel

        store = str(Path(self._folder.name) / "store")
        processes: Processes = []
        channels = []
        for rank in range(ranks):
            ours, theirs = socket.socketpair()
            with theirs:
                channels.append(Channel(ours))
                processes.append(started(RankSettings(library, rank, ranks, rank, theirs.fileno(), store)))
        return processes, channels

    def call(
        self, name: str, sizes: Sizes | Sequence[Sizes], arguments: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Have every rank make a call.

        Args:
            name: "dispatch" or "combine".
            sizes: of all ranks, or of each, where they are to disagree.
            arguments: of each rank, as harness.ranks.worker.Rank takes them.

        Returns:
            The result of each rank.

        Raises:
            RankError: ranks answered with an error: each with its rank and the call.
            RankLostError: a rank died or hangs, now or in an earlier call; all ranks have ended.
        """
        from harness.ranks.messages import packed

        if self.lost:
            raise RankLostError(self.lost)
        self._calls += 1
        told = [sizes] * self.ranks if isinstance(sizes, Sizes) else list(sizes)
        what = f"call {self._calls} ({name}: {told[0]})"
        head = {"call": self._calls, "name": name}
        messages = [
            packed({**head, "sizes": each.as_message, "arguments": given})
            for each, given in zip(told, arguments, strict=True)
        ]
        for rank, (channel, message) in enumerate(zip(self._channels, messages, strict=True)):
            try:
                channel.send(message)
            except TimeoutError:
                self._lose(
                    f"rank {rank} of {self.ranks} hangs: it did not take {what} within {self._seconds:g} s"
                )
            except OSError:
                continue  # it died: `_gather` says how
        answers = self._gather(what, self._seconds)
        if errors := [f"rank {rank}: {got['error']}" for rank, got in enumerate(answers) if "error" in got]:
            raise RankError(f"{what}: " + "; ".join(dict.fromkeys(errors)))
        return [got["result"] for got in answers]

    def close(self) -> None:
        """End all ranks."""
        self.lost = self.lost or "the ranks were ended"
        self._end()

    def _gather(self, what: str, seconds: float) -> list[dict[str, Any]]:
        """Wait for the answers of all ranks to a call. Raises RankLostError where one is missing."""
        answers: dict[int, dict[str, Any]] = {}
        begun: set[int] = set()
        dead: set[int] = set()
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for rank, channel in enumerate(self._channels):
                selector.register(channel.socket, selectors.EVENT_READ, rank)
            while len(answers) + len(dead) < self.ranks and (left := end - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    messages = self._channels[key.data].take()
                    if messages is None:
                        selector.unregister(key.fileobj)
                        dead.add(key.data)
                    for message in messages or ():
                        if "begun" in message:
                            begun.add(key.data)
                        else:
                            answers[key.data] = message
                if dead or any(not _is_result(answer) for answer in answers.values()):
                    end = min(end, time.monotonic() + GRACE_SECONDS)
        if failed := [f"rank {rank}: {got['failed']}" for rank, got in answers.items() if "failed" in got]:
            self._lose(f"the ranks did not start: {failed[0]}")
        if len(answers) < self.ranks or dead:
            self._lose(self._missing(what, seconds, answers, begun, dead))
        return [answers[rank] for rank in range(self.ranks)]

    def _missing(
        self, what: str, seconds: float, answers: dict[int, dict[str, Any]], begun: set[int], dead: set[int]
    ) -> str:
        """Return which rank is to blame for missing answers, in words."""
        said = "".join(
            f"; rank {rank}: {got['error']}" for rank, got in sorted(answers.items()) if "error" in got
        )
        if dead:
            how = [f"rank {rank} of {self.ranks} {_how(self._processes[rank])}" for rank in sorted(dead)]
            return f"{', '.join(how)} in {what}{said}"
        silent = [rank for rank in range(self.ranks) if rank not in answers]
        asleep = [rank for rank in silent if rank not in begun]
        ranks = ", ".join(f"rank {rank}" for rank in asleep or silent)
        if said:
            return f"{what}{said}; {ranks} of {self.ranks} still waits {GRACE_SECONDS:g} s later, so all were ended"
        state = "has not begun" if asleep else "has not ended"
        return f"{ranks} of {self.ranks} hangs: it {state} {what} within {seconds:g} s"

    def _lose(self, words: str) -> None:
        self.lost = words
        self._end()
        raise RankLostError(words)


def _is_result(answer: dict[str, Any]) -> bool:
    return "error" not in answer and "failed" not in answer


def started(settings: RankSettings) -> subprocess.Popen[bytes]:
    """Start the process of one rank."""
    # Only this host: the name that gloo looks up otherwise need not exist in a container.
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(  # noqa: S603 - our own module
        own_module("harness.ranks.worker", as_argument(settings)),
        pass_fds=(settings.connected,), env=environment, stdin=subprocess.DEVNULL, stdout=2,
    )  # fmt: skip


def _how(process: subprocess.Popen[bytes] | None) -> str:
    """Return how a process ended, in words; only its end is known of one that somebody else started."""
    if process is None:
        return "ended"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE_SECONDS)
    code = process.returncode
    if code is None:
        return "closed its connection"
    if code < 0:
        known = -code in list(signal.Signals)
        return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
    return f"exited with {code}"


def _end(processes: Processes, channels: list[Channel], folder: tempfile.TemporaryDirectory[str]) -> None:
    here = [process for process in processes if process]
    for process in here:
        process.kill()
    for process in here:
        process.wait()
    for channel in channels:
        channel.close()
    folder.cleanup()

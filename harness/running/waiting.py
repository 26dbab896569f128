"""How long an answer is waited for, and what it means when none comes: a process that hangs is no slow one.

A problem has a limit in seconds. After it, a process that has done nothing for as long hangs, and so does one that has
computed for ten times as long, by its own processor time: a busy machine takes time from it, never adds to that. Until
then it may answer. One that got so little of a busy machine that neither can be said is given up as slow, which is no
failure of the candidate.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness.running.outcome import Outcome, Status

HANGS = 10  # times the limit, in processor time
GIVEN_UP = 30  # times the limit, on the clock
IDLE = 0.02  # of one processor: less than any process gets that has work, on a machine that is any use
_LOOKS = 10  # at what a process does, in the time of the limit


class Wait:
    """The wait for one answer.

    Args:
        process: the candidate's, which leads a session of its own: what it started counts as well.
        seconds: the limit of a problem.
        hangs: how many times the limit a process may compute before it hangs; 1 where it is known to hang now and then,
            and is given up as slow then.
    """

    def __init__(self, process: int, seconds: float, hangs: float = HANGS) -> None:
        self._process, self._seconds, self._hangs = process, seconds, hangs
        self._began = self._looked = self._moved = time.monotonic()
        self._first: float | None = None  # processor time at the first look
        self._at_move = 0.0  # processor time when the process was last seen to do something

    def over(self) -> Outcome | None:
        """Return what is to be said instead of an answer, None as long as one may come. To be asked now and then."""
        now = time.monotonic()
        if now - self._looked < self._seconds / _LOOKS:
            return None
        self._looked, used = now, processor_seconds(self._process)
        if self._first is None:
            self._first = self._at_move = used
            self._moved = now
        if used - self._at_move > IDLE * self._seconds:
            self._moved, self._at_move = now, used
        waited, got = now - self._began, used - self._first
        if now - self._moved > self._seconds:
            return Outcome(
                Status.TIMEOUT, f"it hangs: no answer, and nothing done for {self._seconds:g} s (idle)"
            )
        if min(got, waited) > self._hangs * self._seconds:
            if self._hangs > 1:
                words = f"it hangs: no answer within {self._hangs * self._seconds:g} s of processor time"
                return Outcome(Status.TIMEOUT, words)
            return Outcome(
                Status.SLOW, f"no answer within {self._seconds:g} s, and it has hung on another problem"
            )
        if waited > GIVEN_UP * self._seconds:
            words = f"no answer within {waited:.0f} s, of which the machine gave it {got:.0f} s"
            return Outcome(Status.SLOW, words)
        return None


def processor_seconds(session: int) -> float:
    """Return the processor time of all processes of a session and of their children that have ended (Linux)."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # state, parent, group, session, ... ; the name before them may hold spaces and brackets
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")

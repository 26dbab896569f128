"""The child process that a candidate runs in: reads problems, answers judgements, one JSON object a line.

Started by harness.running.session.Child; not for use by hand.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.extras import accept_no_numpy
from harness.running.outcome import (
    Command,
    Outcome,
    Status,
    WorkerSettings,
    command_from,
    settings_from,
    to_line,
)
from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.running.judge import Judge


class NotSupportedError(Exception):
    """The candidate says that it cannot run here."""


def main(argument: str) -> None:
    """Serve judgements until the parent closes the pipe.

    Args:
        argument: WorkerSettings as a line.
    """
    settings = settings_from(argument)
    _end_with_the_parent()
    faulthandler.enable()
    accept_no_numpy()
    answers = os.fdopen(settings.answers, "w", encoding="utf-8")

    def answer(outcome: Outcome) -> None:
        answers.write(to_line(outcome) + "\n")
        answers.flush()

    try:
        candidate = _loaded(settings.candidate)
        answer(Outcome(Status.LOADED))
        judge = _ready(candidate, settings)
    except NotSupportedError as error:
        answer(Outcome(Status.FAILED, str(error)))
        return
    except UsageError as error:
        answer(Outcome(Status.USAGE, str(error)))
        return
    except Exception as error:  # noqa: BLE001 - any reason why a candidate does not start is the answer
        answer(Outcome(Status.FAILED, f"{type(error).__name__}: {error}"))
        return
    answer(Outcome(Status.READY, description=judge.describe()))
    with os.fdopen(settings.commands, encoding="utf-8") as commands:
        for line in commands:
            outcome = _obey(judge, command_from(line))
            answer(outcome)
            if outcome.lost:
                return  # the CUDA context is lost: only a new process helps


def _obey(judge: Judge, command: Command) -> Outcome:
    judge.leave_out(command.without)
    try:
        if command.diagnose:
            found = judge.diagnose(command.rule, command.problem, command.diagnose, command.likely)
            return Outcome(Status.DIAGNOSED, diagnosis=found)
        if command.keep:
            kept = judge.keep_calls(
                command.rule, command.problem, Path(command.keep), before_each=command.each
            )
            return Outcome(Status.KEPT, kept)
        return judge.judge(command.rule, command.problem)
    except Exception:  # noqa: BLE001 - a defect of the harness: reported as such, with its trace
        return Outcome(Status.INTERNAL, traceback.format_exc())


def _end_with_the_parent() -> None:
    """Have the kernel kill this process when its parent dies, so that a hanging candidate never keeps a GPU (Linux)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _loaded(name: str) -> Any:
    from harness.candidates import support_of
    from harness.faults.named import load_named

    candidate = load_named(name)
    support = support_of(candidate)
    if not support:
        raise NotSupportedError(support.reason)
    return candidate


def _ready(candidate: Any, settings: WorkerSettings) -> Judge:
    from harness.running.judge import Judge

    if settings.memory_gib:
        import resource

        limit = int(settings.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return Judge(candidate, threads=settings.threads, probe=settings.probe)


if __name__ == "__main__":
    main(sys.argv[1])

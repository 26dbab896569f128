"""The child process that a candidate runs in: reads problems, answers judgements, one JSON object a line.

Started by harness.running.session.Child; not for use by hand.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.candidates.errors import CandidateStartError, in_words
from harness.extras import accept_no_numpy
from harness.processes import end_with_the_parent
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

_BROKEN_PIPE = 1  # exit code where a candidate has closed what this process reads from or answers through


def main(argument: str) -> None:
    """Serve judgements until the parent closes the pipe.

    Args:
        argument: WorkerSettings as a line.
    """
    settings = settings_from(argument)
    end_with_the_parent()
    faulthandler.enable()
    accept_no_numpy()
    for handle in (settings.commands, settings.answers):
        os.set_inheritable(handle, False)  # not for what the candidate starts
    commands = os.fdopen(settings.commands, encoding="utf-8")
    answer = _sealed(settings.answers, commands.readline().strip())
    judge = _started(settings, answer)
    if judge is None:
        return
    try:
        for line in commands:
            outcome = _obey(judge, command_from(line))
            answer(outcome)
            if outcome.lost:
                return  # the CUDA context is lost: only a new process helps
    except OSError:
        os._exit(_BROKEN_PIPE)


def _sealed(handle: int, seal: str) -> Callable[[Outcome], None]:
    """Return what sends an outcome to the parent, with the word in front that tells it from what others write there.

    A candidate finds the descriptor easily and the word only by searching the memory of this process.
    """
    process = os.getpid()

    def answer(outcome: Outcome) -> None:
        if os.getpid() != process:
            os._exit(0)  # a copy that the candidate forked and let return: it has nothing to say
        left = f"{seal} {to_line(outcome)}\n".encode()
        try:
            while left:
                left = left[os.write(handle, left) :]
        except OSError:
            os._exit(_BROKEN_PIPE)

    return answer


def _started(settings: WorkerSettings, answer: Callable[[Outcome], None]) -> Judge | None:
    """Load and measure the candidate and say so; None where that is not possible, which is said too."""
    from harness.faults.named import start_named

    try:
        candidate = start_named(settings.candidate)
        answer(Outcome(Status.LOADED))
        judge = _ready(candidate, settings)
        answer(Outcome(Status.READY, description=judge.describe()))
    except UsageError as error:
        answer(Outcome(Status.USAGE, str(error)))
    except CandidateStartError as error:
        answer(Outcome(Status.FAILED, str(error)))
    except BaseException as error:  # noqa: BLE001 - any reason why a candidate does not start is the answer
        answer(Outcome(Status.FAILED, in_words(error)))
    else:
        return judge
    return None


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
    except BaseException:  # noqa: BLE001 - a defect of the harness: reported as such, with its trace
        return Outcome(Status.INTERNAL, traceback.format_exc())


def _ready(candidate: Any, settings: WorkerSettings) -> Judge:
    from harness.running.judge import Judge

    if settings.memory_gib:
        import resource

        limit = int(settings.memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return Judge(candidate, threads=settings.threads, probe=settings.probe, blamed=(BaseException,))


if __name__ == "__main__":
    main(sys.argv[1])

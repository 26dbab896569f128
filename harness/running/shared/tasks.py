"""A task: a range of one rule's problems, judged one after the other by one worker. Imports no torch.

It is a plain value, and so is what comes of it, so that both may cross to another machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.running.outcome import Outcome, Status
from harness.running.runner import MOST_CRASHES
from harness.running.search import ROUND
from harness.running.session import Session

# So many answers of a kind end a rule (harness.running.runner), whatever comes after them; every other kind at once.
_ENDS = {Status.CRASHED: MOST_CRASHES, Status.TIMEOUT: MOST_CRASHES, Status.NOT_IMPLEMENTED: ROUND}
_GOES_ON = {Status.JUDGED, Status.NO_MEMORY}


@dataclass(frozen=True)
class Task:
    """A range of one rule's problems.

    Attributes:
        rule: id of the rule.
        problems: as strings, in the order in which they are judged.
        seconds: limit of a problem.
        without: stages that are taken to be missing.
    """

    rule: str
    problems: tuple[str, ...]
    seconds: float
    without: tuple[str, ...] = ()


def judge_task(session: Session, task: Task) -> list[Outcome]:
    """Return the outcomes of a task's problems, up to the one after which a run judges no more of the rule.

    What is left out would be judged for nothing: the next problems of a rule that failed are smaller ones, and a
    candidate that keeps crashing needs a new process each time.
    """
    session.left_out = dict.fromkeys(task.without, "")
    found: list[Outcome] = []
    kinds: Counter[Status] = Counter()
    for problem in task.problems:
        started = time.monotonic()
        outcome = session.judge(task.rule, problem, task.seconds)
        found.append(replace(outcome, seconds=time.monotonic() - started))
        kinds[outcome.status] += 1
        going_on = outcome.status in _GOES_ON and not outcome.fails
        if not going_on and kinds[outcome.status] >= _ENDS.get(outcome.status, 1):
            break
    return found


def in_ranges(problems: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return the problems in ranges of that size, the last one shorter."""
    return [tuple(problems[start : start + size]) for start in range(0, len(problems), size)]

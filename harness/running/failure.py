"""One failing problem of a rule as what people read: message, place, command, and what a diagnosis says. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.problems.problem import Problem, parse_problem
from harness.records.record import Failure, Heatmap
from harness.rules import Rule
from harness.running.condition import common
from harness.running.outcome import Outcome, Status
from harness.running.session import Session

DIAGNOSIS_SECONDS = 60.0  # a diagnosis takes about 3; a candidate that hangs is ended
DIAGNOSED_SIZE = 1 << 20  # size of a problem that a diagnosis is made on
MOST_SIZE = 1 << 28  # of one that a diagnosis is made on where no smaller one failed
_KINDS = {
    Status.JUDGED: "illegal",
    Status.CONTRACT: "illegal",
    Status.RAISED: "rejected",
    Status.CRASHED: "crash",
    Status.RANK_LOST: "crash",
    Status.TIMEOUT: "timeout",
}


def describe_failure(rule: Rule, candidate: str, problem: str, outcome: Outcome) -> Failure:
    """Return the failure of one problem, with the message that pytest, the terminal and the report show."""
    bad, others = next(iter(outcome.illegal), None), outcome.illegal[1:]
    command = reproduce_command(rule.id, candidate, problem)
    lines = [bad.message if bad else f"{outcome.status}: {outcome.error}"]
    if others:
        named = ", ".join(other.stage for other in others)
        lines.append(f"  also       illegal in the same problem: {named}")
    lines += [
        f"  rule       {rule.id}: {rule.title}",
        f"  candidate  {candidate}",
        f"  problem    {problem}",
        f"  reproduce  {command}",
    ]
    failure = Failure(
        rule=rule.id,
        candidate=candidate,
        problem=problem,
        stage="",
        kind=_KINDS[outcome.status],
        message="\n".join(lines),
        reproduce=command,
    )
    if bad is None:
        return failure
    return replace(
        failure,
        stage=bad.stage,
        place=bad.place,
        extent=bad.extent,
        heatmap=bad.heatmap,
        heatmaps=list(bad.heatmaps),
    )


def heatmaps_of(outcome: Outcome, problem: str) -> list[Heatmap]:
    """Return the views of another problem's illegal elements, which say so in their titles."""
    if not outcome.illegal:
        return []
    bad = outcome.illegal[0]
    views = [view for view in (bad.heatmap, *bad.heatmaps) if view]
    titles = [f"{bad.stage}, {view.title}" if view.title else bad.stage for view in views]
    return [replace(view, title=f"{title} of {problem}") for view, title in zip(views, titles, strict=True)]


def most_telling(problems: list[str]) -> str:
    """Return the failing problem on which a diagnosis has most to go by: a shrunk one makes all faults look alike."""
    small = (p for p in problems if problem_size(p) <= DIAGNOSED_SIZE)
    return max(small, key=problem_size, default=problems[-1])


def problem_size(text: str) -> int:
    """Return experts x capacity x the wider of hidden and inter of a problem."""
    problem = parse_problem(text)
    return problem.experts * problem.capacity * max(problem.hidden, problem.inter)


def diagnose_failure(failure: Failure, session: Session) -> None:
    """Add which known faults explain a failure to it and to its message."""
    _tell(failure, _diagnosed(failure, session, failure.problem))


def diagnose_both(failure: Failure, other: Failure, session: Session) -> list[Failure]:
    """Add to a failure what explains it, with the help of a larger problem on which the rule fails too.

    Args:
        failure: the one that is shown.
        other: of the larger problem.
        session: where the candidate lives.

    Returns:
        The larger problem's failure where it has a known cause that is not the shown one's; else nothing.
    """
    from harness.diagnosis.telling.agreement import agree, combined, is_claimed

    larger = _diagnosed(other, session, other.problem)
    names = [f["fault"] for f in larger if f["fault"] and not f.get("alternative")]
    shown = _diagnosed(failure, session, failure.problem, names)
    _tell(failure, combined(shown, larger, other.problem))
    if not shown or agree(shown, larger) is not None or not is_claimed(larger):
        return []
    _tell(other, larger)
    return [other]


def _diagnosed(
    failure: Failure, session: Session, problem: str, likely: Sequence[str] = ()
) -> list[dict[str, Any]]:
    from harness.diagnosis.telling.words import diagnose_command

    if failure.kind != "illegal" or not failure.stage:
        return []  # what was raised says itself what is wrong
    if problem_size(problem) > MOST_SIZE:
        return []  # every call would be kept on the CPU, several times
    command = diagnose_command(failure.candidate, failure.rule, problem)
    return session.diagnose(failure.rule, problem, command, DIAGNOSIS_SECONDS, likely)


def _tell(failure: Failure, diagnosis: list[dict[str, Any]]) -> None:
    from harness.diagnosis.telling.words import message_lines

    failure.diagnosis = diagnosis
    failure.message = "\n".join([failure.message, *message_lines(diagnosis)])


def tell_condition(failure: Failure, raising: Sequence[Problem], returning: Sequence[Problem]) -> None:
    """Add to the failure of a candidate that raises which problems have that in common, and no other has."""
    if condition := common(raising, returning):
        _tell(
            failure,
            [
                {
                    "fault": "",
                    "title": f"it fails like this whenever {condition}",
                    "explained": 0.0,
                    "elements": 0,
                    "evidence": f"{len(raising)} problems fail like this, {len(returning)} do not",
                    "pattern": [f"{len(raising)} problems that fail so, {len(returning)} that do not"],
                }
            ],
        )


def reproduce_command(rule: str, candidate: str, problem: str) -> str:
    """Return the command that repeats one problem of one rule."""
    return (
        f"harness check --rule {rule} --candidate {shlex.quote(candidate)} --problem {shlex.quote(problem)}"
    )

"""Run one rule: draw problems with hypothesis, judge them, shrink a failing one, and sum up. Imports no torch."""

from __future__ import annotations

import shlex
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.candidates.protocol import Traits
from harness.problems.problem import Problem, parse_problem
from harness.problems.profiles import Profile
from harness.problems.shapes import ModelShape
from harness.records.record import Failure, Heatmap, RuleResult
from harness.rules import Rule
from harness.running.session import Session
from harness.running.tally import Tally
from harness.verdict import Verdict

SHRINK_SECONDS = 20.0
DIAGNOSIS_SECONDS = 60.0  # a diagnosis takes about 3; a candidate that hangs is ended
DIAGNOSED_SIZE = 1 << 20  # experts x capacity x hidden of a problem that a diagnosis is made on
ROUND = 10
"""Examples of one search of hypothesis. From the eleventh on it follows each with up to five small variations of it: of 144
problems of one rule 46 were really different. A failing one is shrunk all the same."""
MOST_CRASHES = 3  # of one rule, after which it ends: each costs a fresh process


class InternalError(Exception):
    """A defect of the harness itself, with the trace from the process in which it showed."""


class _IllegalError(Exception):
    """Raised inside hypothesis on an illegal outcome, so that it shrinks the problem."""


@dataclass
class RunSettings:
    """What a run was asked for.

    Attributes:
        profile: how much.
        seed: of the draws; the same seed draws the same problems.
        deadline: `time.monotonic()` at which no further problem is drawn, or infinity.
        shape: a real model's shape, or None for drawn ones.
        candidate: name for reproduce commands.
        progress: called with the number of problems judged so far and the number wanted.
    """

    profile: Profile
    seed: int = 0
    deadline: float = float("inf")
    shape: ModelShape | None = None
    candidate: str = ""
    progress: Callable[[int, int], None] = lambda _done, _wanted: None


def run_rule(rule: Rule, session: Session, settings: RunSettings) -> tuple[RuleResult, Counter[str]]:
    """Run one rule on drawn problems.

    Args:
        rule: what to judge.
        session: where the candidate lives.
        settings: how much, with which seed.

    Returns:
        The rule's result, and how often each trap was drawn.

    Raises:
        InternalError: the harness itself failed while judging.
    """
    from hypothesis import HealthCheck, Phase, Verbosity, given, seed
    from hypothesis import settings as hypothesis_settings

    from harness.problems.strategies import problems

    traits = traits_from(session.describe()["traits"])
    wanted = max(settings.profile.least, round(settings.profile.examples * rule.share))
    tally = Tally(RuleResult(rule.id, rule.title, settings.candidate, Verdict.UNKNOWN))
    started = time.monotonic()

    drawing = hypothesis_settings(
        max_examples=ROUND,
        database=None,  # the record's reproduce command repeats a failure; nothing is left in the user's folder
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        print_blob=False,
        report_multiple_bugs=False,
    )
    drawn = problems(rule.drawn, traits, settings.profile, settings.shape)

    def over() -> bool:
        """Return whether no further problem is to be drawn."""
        tally.late = time.monotonic() > settings.deadline
        return (
            tally.late
            or tally.crashes >= MOST_CRASHES
            or bool(tally.result.skipped)
            or tally.result.examples >= wanted
        )

    def draw(problem: Problem) -> None:
        # One answer a problem: a candidate that fails now and then must not look like a check that does.
        passed_before = problem in tally.seen and str(problem) not in tally.failed
        if passed_before or (tally.first_failure is None and over()):
            return
        if reason := misfit(problem, rule, traits):
            tally.misfit = reason
            return
        fails = _judge_one(rule, problem, session, settings, tally)
        settings.progress(tally.result.examples, wanted)
        tally.seen.add(problem)
        if fails:
            raise _IllegalError  # one place: hypothesis tells failures apart by the line that raised

    try:
        # Each rule draws problems of its own, and a round may start with ones that another round had as well.
        for number in range(2 * wanted // ROUND + 1):
            if over():
                break
            start = zlib.crc32(f"{rule.id} {settings.seed} {number}".encode())
            seed(start)(drawing(given(drawn)(draw)))()
    except _IllegalError:
        smallest = list(tally.failed)[-1]
        failure = _failure(rule, settings.candidate, smallest, tally.failed[smallest])
        telling = _most_telling(list(tally.failed))
        if telling != smallest:
            failure.heatmaps += _heatmaps(tally.failed[telling], telling)
        _diagnose(failure, session, telling)
        tally.result.failures.append(failure)
    tally.result.seconds = time.monotonic() - started
    tally.conclude(wanted, rule.power)
    return tally.result, tally.traps


def run_problem(
    rule: Rule, session: Session, settings: RunSettings, problem: Problem
) -> tuple[RuleResult, Counter[str]]:
    """Run one rule on one given problem, without shrinking: what a reproduce command does."""
    tally = Tally(RuleResult(rule.id, rule.title, settings.candidate, Verdict.UNKNOWN))
    started = time.monotonic()
    tally.misfit = misfit(problem, rule, traits_from(session.describe()["traits"]))
    if not tally.misfit and _judge_one(rule, problem, session, settings, tally):
        text = str(problem)
        failure = _failure(rule, settings.candidate, text, tally.failed[text])
        _diagnose(failure, session, text)
        tally.result.failures.append(failure)
    tally.result.seconds = time.monotonic() - started
    tally.conclude(1, rule.power)
    return tally.result, tally.traps


def misfit(problem: Problem, rule: Rule, traits: Traits) -> str:
    """Return why the problem asks for something that the candidate does not claim to take, or ""."""
    step = traits.width_multiple
    for name in ("hidden", "inter"):
        if getattr(problem, name) % step:
            return f"{name} {getattr(problem, name)} is not a multiple of {step}"
    if problem.capacity % traits.m_multiple:
        return f"capacity {problem.capacity} is not a multiple of {traits.m_multiple}"
    if problem.experts < traits.min_experts:
        return f"{problem.experts} experts are fewer than {traits.min_experts}"
    if rule.id in {"PIPELINE", "MOE"} and problem.activation not in traits.activations:
        return f"activation {problem.activation} is none of {', '.join(traits.activations)}"
    if rule.id == "GEMM" and problem.out_dtype not in traits.out_dtypes:
        return f"output type {problem.out_dtype} is none of {', '.join(traits.out_dtypes)}"
    return ""


def _judge_one(rule: Rule, problem: Problem, session: Session, settings: RunSettings, tally: Tally) -> bool:
    """Judge a problem and count it; return whether hypothesis should shrink it."""
    text = str(problem)
    if text in tally.failed:
        tally.failed[text] = tally.failed.pop(
            text
        )  # the last one is the smallest: hypothesis ends by replaying it
        return True
    if tally.first_failure is not None and time.monotonic() > tally.first_failure + SHRINK_SECONDS:
        return False  # enough shrinking: every problem not yet known to fail counts as passing
    outcome = session.judge(rule.id, text, settings.profile.problem_seconds)
    status = outcome["status"]
    if status == "internal":
        raise InternalError(f"{rule.id} on {text}:\n{outcome['error']}")
    counting = tally.first_failure is None
    if counting and status != "not applicable":
        tally.result.examples += 1
        tally.traps.update(problem.traps())
    if status == "not applicable":
        tally.result.skipped = outcome["error"]
    elif status in {"crashed", "timeout"}:
        # One problem is lost, not the run: it is recorded and not shrunk, since each try would cost a new process.
        tally.crashes += 1
        tally.result.failures.append(_failure(rule, settings.candidate, text, outcome))
    elif status == "judged":
        if counting:
            tally.add(outcome, problem)
        if any(c["illegal"] for c in outcome["comparisons"]):
            return _found(tally, text, outcome)
    else:
        return _found(tally, text, outcome)
    return False


def _found(tally: Tally, text: str, outcome: dict[str, Any]) -> bool:
    tally.failed[text] = outcome
    if tally.first_failure is None:
        tally.first_failure = time.monotonic()
    return True


_KINDS = {
    "judged": "illegal",
    "contract": "illegal",
    "raised": "rejected",
    "crashed": "crash",
    "timeout": "timeout",
}


def _failure(rule: Rule, candidate: str, problem: str, outcome: dict[str, Any]) -> Failure:
    """Build the failure of one problem, with the message that pytest, the terminal and the report show."""
    bad = next((c for c in outcome.get("comparisons", []) if c["illegal"]), None)
    command = reproduce_command(rule.id, candidate, problem)
    head = bad["message"] if bad else f"{outcome['status']}: {outcome['error']}"
    others = [c["stage"] for c in outcome.get("comparisons", []) if c["illegal"] and c is not bad]
    lines = [head]
    if others:
        lines.append(f"  also       illegal in the same problem: {', '.join(others)}")
    lines += [
        f"  rule       {rule.id}: {rule.title}",
        f"  candidate  {candidate}",
        f"  problem    {problem}",
        f"  reproduce  {command}",
    ]
    return Failure(
        rule=rule.id,
        candidate=candidate,
        problem=problem,
        stage=bad["stage"] if bad else "",
        kind=_KINDS[outcome["status"]],
        message="\n".join(lines),
        reproduce=command,
        place=bad["place"] if bad else {},
        extent=bad["extent"] if bad else {},
        heatmap=Heatmap(**bad["heatmap"]) if bad and bad["heatmap"] else None,
        heatmaps=[Heatmap(**h) for h in bad.get("heatmaps", [])] if bad else [],
    )


def _heatmaps(outcome: dict[str, Any], problem: str) -> list[Heatmap]:
    """Return the views of another problem's illegal elements, which say so in their titles."""
    bad = next((c for c in outcome.get("comparisons", []) if c["illegal"]), None)
    if bad is None:
        return []
    maps = [Heatmap(**h) for h in (bad.get("heatmap"), *bad.get("heatmaps", [])) if h]
    for one in maps:
        where = f"{bad['stage']}, {one.title}" if one.title else bad["stage"]
        one.title = f"{where} of {problem}"
    return maps


def _most_telling(problems: list[str]) -> str:
    """Return the failing problem on which a diagnosis has most to go by: a shrunk one makes all faults look alike."""

    def size(text: str) -> int:
        problem = parse_problem(text)
        return problem.experts * problem.capacity * problem.hidden

    return max((p for p in problems if size(p) <= DIAGNOSED_SIZE), key=size, default=problems[-1])


def _diagnose(failure: Failure, session: Session, problem: str) -> None:
    """Add which known faults explain a failure to it and to its message."""
    from harness.diagnosis.telling.words import diagnose_command, message_lines

    command = diagnose_command(failure.candidate, failure.rule, problem)
    failure.diagnosis = session.diagnose(failure.rule, problem, command, DIAGNOSIS_SECONDS)
    if failure.diagnosis:
        failure.message = "\n".join([failure.message, *message_lines(failure.diagnosis)])


def reproduce_command(rule: str, candidate: str, problem: str) -> str:
    """Return the command that repeats one problem of one rule."""
    return (
        f"harness check --rule {rule} --candidate {shlex.quote(candidate)} --problem {shlex.quote(problem)}"
    )


def traits_from(described: dict[str, Any]) -> Traits:
    """Return the traits that a session described: JSON has made lists of their tuples."""
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in described.items()}
    return Traits(**values)

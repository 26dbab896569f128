"""Run one rule: draw problems with hypothesis, judge them, shrink a failing one, and sum up. Imports no torch."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from harness.problems.problem import Problem, parse_problem
from harness.problems.profiles import Profile
from harness.problems.reach import far_for
from harness.problems.values import seldom_for, seldom_problem
from harness.records.record import Failure, RuleResult
from harness.rules import Rule
from harness.running.failure import (
    describe_failure,
    diagnose_both,
    diagnose_failure,
    heatmaps_of,
    most_telling,
    tell_condition,
)
from harness.running.misfit import misfit
from harness.running.outcome import Outcome, Status
from harness.running.search import ROUND, IllegalError, search
from harness.running.session import Session
from harness.running.settings import RunSettings
from harness.running.tally import Tally
from harness.verdict import Verdict

SHRINK_SECONDS = 20.0
FIRST_CAPACITY = 32  # of the first ten problems of a real model's shape
MOST_CRASHES = 3  # of one rule, after which it ends: each costs a fresh process
MOST_SLOW = 3  # problems of a rule that take longer than their limit and are answered all the same, after which it ends


class InternalError(Exception):
    """A defect of the harness itself, with the trace from the process in which it showed."""


class RuleRun:
    """One rule on one candidate: draws or takes problems, judges them, and counts.

    Args:
        rule: what to judge.
        session: where the candidate lives.
        settings: how much, with which seed.
    """

    def __init__(self, rule: Rule, session: Session, settings: RunSettings) -> None:
        self._rule, self._session, self._settings = rule, session, settings
        described = session.describe()
        self._traits = described.declared
        self._tally = Tally(RuleResult(rule.id, rule.title, settings.candidate, Verdict.UNKNOWN))
        self._wanted = wanted_problems(rule, settings.profile)
        # A real model's extents are what was asked for. What fails on small problems too is found on those first.
        far = far_for(
            rule.id, self._traits,
            all_of_them=rule.reaches, device_bytes=described.device_bytes, around=rule.extents,
        )  # fmt: skip
        self._far = [] if settings.shape or rule.once else far
        self._budget = max(self._wanted - len(self._far), 1)  # problems to be judged by now
        seldom = seldom_for(rule.drawn, self._traits) if rule.judges_values and not settings.shape else []
        self._seldom = seldom * max(settings.profile.trap_floor, 1)
        self._wanted += len(self._seldom)
        # Problems for which a stage raised NotImplementedError and had never returned.
        self._stubs: list[str] = []
        self.not_implemented = ""  # a stage for which that is all it ever did
        self._crashes = 0  # problems that ended the candidate's process, or hung
        self._slow = 0  # problems that took longer than the limit
        self._measured = 0.0  # seconds of judging that somebody else measured
        self._large = False  # the problem at hand needs much memory of a GPU
        self._seen: set[Problem] = set()
        # Outcomes of failing problems. The last one is the smallest: hypothesis ends by replaying it.
        self._failed: dict[str, Outcome] = {}
        self._first_failure: float | None = None  # time.monotonic() of it

    @property
    def traps(self) -> Counter[str]:
        """How often each trap was drawn."""
        return self._tally.traps

    def draw(self) -> RuleResult:
        """Judge drawn problems, shrink one that fails, and return what came of it.

        Raises:
            InternalError: the harness itself failed while judging.
        """
        started = time.monotonic()
        try:
            self._draw_rounds()
            self._judge_seldom_values()
            self._reach()
        except IllegalError:
            self._drop_extras(parse_problem(list(self._failed)[-1]))
            self._explain(list(self._failed)[-1])
        if self._stubs and not self._tally.result.failures:
            self._settle(self._stubs[0])
        return self._concluded(started)

    def repeat(self, problem: Problem) -> RuleResult:
        """Judge one given problem, without shrinking: what a reproduce command does. Raises what `draw` does."""
        started = time.monotonic()
        self._wanted = self._budget = 1
        self._tally.misfit = misfit(problem, self._rule, self._traits)
        if not self._tally.misfit and self._fails(problem):
            failure = self._failure(str(problem))
            diagnose_failure(failure, self._session)
            self._tally.result.failures.append(failure)
        if self._stubs:
            self._round(self._try, 0)  # does it refuse this problem only?
            self._settle(str(problem))
        return self._concluded(started)

    def _explain(self, smallest: str) -> None:
        """Add the failure of the smallest problem, with what explains it, to what was found."""
        failure, outcome = self._failure(smallest), self._failed[smallest]
        found = [failure]
        if outcome.status is not Status.JUDGED:
            alike = [parse_problem(p) for p, o in self._failed.items() if o.status is outcome.status]
            tell_condition(failure, alike, [p for p in self._seen if p not in alike])
        else:
            if not self._settings.diagnosed:
                self._tally.result.failures += found
                return
            telling = most_telling([p for p, o in self._failed.items() if o.status is Status.JUDGED])
            if telling == smallest:
                diagnose_failure(failure, self._session)
            else:
                failure.heatmaps += heatmaps_of(self._failed[telling], telling)
                found += diagnose_both(failure, self._failure(telling), self._session)
        self._tally.result.failures += found

    def _reach(self) -> None:
        """Judge the problems that reach far, one extent each. Raises IllegalError when a failing one has been shrunk."""
        from harness.problems.strategies import nearer

        for far in self._far:
            self._budget = self._tally.drawn + 1
            self._large = far.device_bytes > 0
            start = zlib.crc32(f"{self._rule.id} {self._settings.seed} {far.name}".encode())
            if self._over():
                return
            try:
                self._take(far.problem(far.most, self._traits, start % 100_000))
            except IllegalError:
                search(self._take, nearer(far, self._traits, start % 100_000), start)
                raise  # nothing smaller was found to fail

    def _judge_seldom_values(self) -> None:
        """Judge a problem of each value that is met seldom. Raises IllegalError as `_reach` does."""
        from harness.problems.strategies import simpler

        for number, extras in enumerate(self._seldom):
            self._budget = self._tally.drawn + 1
            start = zlib.crc32(f"{self._rule.id} {self._settings.seed} {number} {sorted(extras)}".encode())
            if self._over():
                return
            problem = seldom_problem(extras, self._traits, start % 100_000)
            try:
                self._take(problem)
            except IllegalError:
                search(self._take, simpler(problem, self._traits), start)
                raise  # nothing smaller was found to fail

    def _drop_extras(self, smallest: Problem) -> None:
        """Leave out the traps and options without which the smallest problem fails too, so that those left name the value."""
        for name in sorted(smallest.extras):
            fewer = replace(smallest, extras=smallest.extras - {name})
            if not misfit(fewer, self._rule, self._traits) and self._fails(fewer):
                smallest = fewer

    def left_out(self, reason: str) -> RuleResult:
        """Judge nothing, for a reason that another rule found."""
        self._tally.not_implemented = reason
        return self._concluded(time.monotonic())

    def _draw_rounds(self) -> None:
        """Draw and judge in rounds of ten. Raises IllegalError when a failing problem has been shrunk."""
        # Each rule draws problems of its own, and a round may start with ones that another round had as well.
        for number in range(2 * self._wanted // ROUND + 1):
            if self._over():
                break
            self._round(self._take, number)

    def _round(self, take: Callable[[Problem], None], number: int) -> None:
        """Hand ten drawn problems to a function; `number` says which ten."""
        from harness.problems.strategies import problems

        profile, shape = self._settings.profile, self._settings.shape
        if shape and not number:  # of the few problems that there may be time for, the first are small
            profile = replace(profile, capacity=min(profile.capacity, FIRST_CAPACITY))
        drawn = problems(self._rule.drawn, self._traits, profile, shape)
        search(take, drawn, zlib.crc32(f"{self._rule.id} {self._settings.seed} {number}".encode()))

    def _over(self) -> bool:
        """Return whether no further problem is to be drawn."""
        self._tally.late = time.monotonic() > self._settings.deadline
        return (
            self._tally.late
            or self._crashes >= MOST_CRASHES
            or bool(self._tally.slow)
            or len(self._stubs) >= ROUND
            or bool(self._tally.result.skipped)
            or self._tally.drawn >= self._budget
        )

    def _take(self, problem: Problem) -> None:
        """Judge a problem that hypothesis drew, or pass over it. Raises IllegalError where it fails."""
        # One answer a problem: a candidate that fails now and then must not look like a check that does.
        passed_before = problem in self._seen and str(problem) not in self._failed
        if passed_before or (self._first_failure is None and self._over()):
            return
        if reason := misfit(problem, self._rule, self._traits):
            self._tally.misfit = reason
            return
        if not problem.tokens and not self._seen:
            return  # hypothesis draws the simplest first, without a row: of all problems it says least
        fails = self._fails(problem)
        self._settings.progress(self._rule, self._tally.drawn, self._wanted)
        self._seen.add(problem)
        if fails:
            raise IllegalError  # one place: hypothesis tells failures apart by the line that raised

    def _fails(self, problem: Problem) -> bool:
        """Judge a problem and count it; return whether hypothesis should shrink it."""
        text = str(problem)
        if text in self._failed:
            self._failed[text] = self._failed.pop(text)
            return True
        if self._first_failure is not None and time.monotonic() > self._first_failure + SHRINK_SECONDS:
            return False  # enough shrinking: every problem not yet known to fail counts as passing
        outcome = self._judged(text)
        if outcome.status is Status.ELSEWHERE:
            self._tally.elsewhere += self._first_failure is None
            return False
        if self._left_open(outcome, text):
            return False
        if self._first_failure is None:
            self._tally.add(outcome, problem)
        if outcome.lost:
            # One problem is lost, not the run: it is recorded and not shrunk, since each try would cost a new process.
            self._crashes += MOST_CRASHES if outcome.status is Status.RANK_LOST else 1
            self._tally.result.failures.append(
                describe_failure(self._rule, self._settings.candidate, text, outcome)
            )
            return False
        if outcome.fails:
            self._failed[text] = outcome
            self._first_failure = self._first_failure or time.monotonic()
        return outcome.fails

    def _left_open(self, outcome: Outcome, problem: str) -> bool:
        """Note and return whether an outcome says neither that the candidate is right nor that it is wrong."""
        if outcome.status is Status.NOT_APPLICABLE:
            self._tally.result.skipped = outcome.error
        elif outcome.status is Status.NOT_IMPLEMENTED:
            self._stubs.append(problem)
        elif outcome.status is Status.SLOW:
            self._tally.slow = f"{outcome.error}, on {problem}"
        elif outcome.status is Status.NO_MEMORY:
            self._tally.no_memory = f"there is not memory enough to judge {problem}: {outcome.error}"
        else:
            return self._lacks_memory(outcome)  # then it is not tested, and a PASS does not state it
        return True

    def _lacks_memory(self, outcome: Outcome) -> bool:
        return self._large and "OutOfMemoryError" in outcome.error

    def _try(self, problem: Problem) -> None:
        """Have the candidate's stages called on a problem, whatever comes of it."""
        if not misfit(problem, self._rule, self._traits):
            self._judged(str(problem))

    def _judged(self, problem: str) -> Outcome:
        limit, started = self._settings.profile.problem_seconds, time.monotonic()
        outcome = self._session.judge(self._rule.id, problem, limit)
        if outcome.status is Status.INTERNAL and not self._lacks_memory(outcome):
            raise InternalError(f"{self._rule.id} on {problem}:\n{outcome.error}")
        took = outcome.seconds or time.monotonic() - started
        self._measured += outcome.seconds
        self._slow += took > limit
        if self._slow >= MOST_SLOW and not self._tally.slow:
            self._tally.slow = (
                f"{self._slow} problems took longer than {limit:g} s each, the last of them {problem}"
            )
        return outcome

    def _settle(self, problem: str) -> None:
        """Decide about a problem for which NotImplementedError was raised: a stage is missing, or it refuses some problems.

        By now the stage has had others: once it has returned for one of them, the same error is a failure.
        """
        outcome = self._judged(problem)
        if outcome.status is Status.NOT_IMPLEMENTED:
            self.not_implemented = outcome.stage
            said = f"NotImplementedError({outcome.error!r})" if outcome.error else "NotImplementedError"
            self._tally.not_implemented = (
                f"{outcome.stage} is not implemented: it raises {said} for every problem. A stage that is missing should "
                "not be defined"
            )
        elif outcome.fails:
            self._failed[problem] = outcome
            self._tally.result.failures.append(self._failure(problem))

    def _failure(self, problem: str) -> Failure:
        return describe_failure(self._rule, self._settings.candidate, problem, self._failed[problem])

    def _concluded(self, started: float) -> RuleResult:
        self._tally.result.seconds = self._measured or time.monotonic() - started
        self._tally.conclude(self._wanted, self._rule.power)
        return self._tally.result


def wanted_problems(rule: Rule, profile: Profile) -> int:
    """Return how many problems of a rule a profile asks for."""
    if rule.once:
        return 1
    return max(profile.least, round(profile.examples * rule.share))

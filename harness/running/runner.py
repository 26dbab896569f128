"""Run one rule: draw problems with hypothesis, judge them, shrink a failing one, and sum up. Imports no torch."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.candidates.protocol import Traits
from harness.problems.problem import Problem
from harness.problems.profiles import Profile
from harness.problems.reach import far_for
from harness.problems.shapes import ModelShape
from harness.records.record import Failure, RuleResult
from harness.rules import Rule
from harness.running.failure import describe_failure, diagnose_failure, heatmaps_of, most_telling
from harness.running.outcome import Outcome, Status
from harness.running.session import Session
from harness.running.tally import Tally
from harness.verdict import Verdict

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

SHRINK_SECONDS = 20.0
ROUND = 10
"""Examples of one search of hypothesis. From the eleventh on it follows each with up to five small variations of it: of 144
problems of one rule 46 were really different. A failing one is shrunk all the same."""
MOST_CRASHES = 3  # of one rule, after which it ends: each costs a fresh process


class InternalError(Exception):
    """A defect of the harness itself, with the trace from the process in which it showed."""


class _IllegalError(Exception):
    """Raised inside hypothesis on an illegal outcome, so that it shrinks the problem."""


class _Ended(BaseException):
    """Carries through hypothesis what ended a judgement from outside, a test's time limit for example."""


@dataclass
class RunSettings:
    """What a run was asked for.

    Attributes:
        profile: how much.
        seed: of the draws; the same seed draws the same problems.
        deadline: `time.monotonic()` at which no further problem is drawn, or infinity.
        shape: a real model's shape, or None for drawn ones.
        candidate: name for reproduce commands.
        progress: called with the rule, the number of problems judged so far and the number wanted.
    """

    profile: Profile
    seed: int = 0
    deadline: float = float("inf")
    shape: ModelShape | None = None
    candidate: str = ""
    progress: Callable[[Rule, int, int], None] = lambda _rule, _done, _wanted: None


class RuleRun:
    """One rule on one candidate: draws or takes problems, judges them, and counts.

    Args:
        rule: what to judge.
        session: where the candidate lives.
        settings: how much, with which seed.
    """

    def __init__(self, rule: Rule, session: Session, settings: RunSettings) -> None:
        self._rule, self._session, self._settings = rule, session, settings
        self._traits = session.describe().declared
        self._tally = Tally(RuleResult(rule.id, rule.title, settings.candidate, Verdict.UNKNOWN))
        self._wanted = wanted_problems(rule, settings.profile)
        # A real model's extents are what was asked for. What fails on small problems too is found on those first.
        self._far = [] if settings.shape else far_for(rule.id, self._traits, all_of_them=rule.reaches)
        self._budget = max(self._wanted - len(self._far), 1)  # problems to be judged by now
        self._stubs: list[
            str
        ] = []  # problems for which a stage raised NotImplementedError and had never returned
        self.not_implemented = ""  # a stage for which that is all it ever did
        self._crashes = 0  # problems that ended the candidate's process, or took too long
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
            self._reach()
        except _Ended as ended:
            raise ended.args[0] from None
        except _IllegalError:
            smallest = list(self._failed)[-1]
            failure = self._failure(smallest)
            telling = most_telling(list(self._failed))
            if telling != smallest:
                failure.heatmaps += heatmaps_of(self._failed[telling], telling)
            diagnose_failure(failure, self._session, telling)
            self._tally.result.failures.append(failure)
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
            diagnose_failure(failure, self._session, str(problem))
            self._tally.result.failures.append(failure)
        if self._stubs:
            self._round(self._try, 0)  # does it refuse this problem only?
            self._settle(str(problem))
        return self._concluded(started)

    def _reach(self) -> None:
        """Judge the problems that reach far, one extent each. Raises _IllegalError when a failing one has been shrunk."""
        from harness.problems.strategies import nearer

        for far in self._far:
            self._budget = self._tally.result.examples + 1
            start = zlib.crc32(f"{self._rule.id} {self._settings.seed} {far.name}".encode())
            if self._over():
                return
            try:
                self._take(far.problem(far.most, self._traits, start % 100_000))
            except _IllegalError:
                self._search(self._take, nearer(far, self._traits, start % 100_000), start)
                raise  # nothing smaller was found to fail

    def left_out(self, stage: str, found_by: str) -> RuleResult:
        """Judge nothing, because another rule found that a stage is not implemented."""
        self._tally.not_implemented = f"{stage} is not implemented: see {found_by}"
        return self._concluded(time.monotonic())

    def _draw_rounds(self) -> None:
        """Draw and judge in rounds of ten. Raises _IllegalError when a failing problem has been shrunk."""
        # Each rule draws problems of its own, and a round may start with ones that another round had as well.
        for number in range(2 * self._wanted // ROUND + 1):
            if self._over():
                break
            self._round(self._take, number)

    def _round(self, take: Callable[[Problem], None], number: int) -> None:
        """Hand ten drawn problems to a function; `number` says which ten."""
        from harness.problems.strategies import problems

        drawn = problems(self._rule.drawn, self._traits, self._settings.profile, self._settings.shape)
        self._search(take, drawn, zlib.crc32(f"{self._rule.id} {self._settings.seed} {number}".encode()))

    def _search(self, take: Callable[[Problem], None], drawn: SearchStrategy[Problem], start: int) -> None:
        """Hand ten problems that hypothesis draws from a seed to a function, and shrink one for which it raises."""
        from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

        from harness.problems.strategies import only_the_seed

        drawing = settings(
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
        with only_the_seed():
            seed(start)(drawing(given(drawn)(take)))()

    def _over(self) -> bool:
        """Return whether no further problem is to be drawn."""
        self._tally.late = time.monotonic() > self._settings.deadline
        result = self._tally.result
        return (
            self._tally.late
            or self._crashes >= MOST_CRASHES
            or len(self._stubs) >= ROUND
            or bool(result.skipped)
            or result.examples >= self._budget
        )

    def _take(self, problem: Problem) -> None:
        """Judge a problem that hypothesis drew, or pass over it. Raises _IllegalError where it fails."""
        # One answer a problem: a candidate that fails now and then must not look like a check that does.
        passed_before = problem in self._seen and str(problem) not in self._failed
        if passed_before or (self._first_failure is None and self._over()):
            return
        if reason := misfit(problem, self._rule, self._traits):
            self._tally.misfit = reason
            return
        fails = self._fails(problem)
        self._settings.progress(self._rule, self._tally.result.examples, self._wanted)
        self._seen.add(problem)
        if fails:
            raise _IllegalError  # one place: hypothesis tells failures apart by the line that raised

    def _fails(self, problem: Problem) -> bool:
        """Judge a problem and count it; return whether hypothesis should shrink it."""
        text = str(problem)
        if text in self._failed:
            self._failed[text] = self._failed.pop(text)
            return True
        if self._first_failure is not None and time.monotonic() > self._first_failure + SHRINK_SECONDS:
            return False  # enough shrinking: every problem not yet known to fail counts as passing
        outcome = self._judged(text)
        if self._says_nothing(outcome, text):
            return False
        if self._first_failure is None:
            self._tally.add(outcome, problem)
        if outcome.lost:
            # One problem is lost, not the run: it is recorded and not shrunk, since each try would cost a new process.
            self._crashes += 1
            self._tally.result.failures.append(
                describe_failure(self._rule, self._settings.candidate, text, outcome)
            )
            return False
        if outcome.fails:
            self._failed[text] = outcome
            self._first_failure = self._first_failure or time.monotonic()
        return outcome.fails

    def _says_nothing(self, outcome: Outcome, problem: str) -> bool:
        """Note and return whether an outcome says neither that the candidate is right nor that it is wrong."""
        if outcome.status is Status.NOT_APPLICABLE:
            self._tally.result.skipped = outcome.error
        elif outcome.status is Status.NOT_IMPLEMENTED:
            self._stubs.append(problem)
        elif outcome.status is Status.NO_MEMORY:
            self._tally.no_memory = f"there is not memory enough to judge {problem}: {outcome.error}"
        else:
            return False
        return True

    def _try(self, problem: Problem) -> None:
        """Have the candidate's stages called on a problem, whatever comes of it."""
        if not misfit(problem, self._rule, self._traits):
            self._judged(str(problem))

    def _judged(self, problem: str) -> Outcome:
        try:
            outcome = self._session.judge(self._rule.id, problem, self._settings.profile.problem_seconds)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as outside:  # pytest's own, which hypothesis would take for a failing problem
            raise _Ended(outside) from outside
        if outcome.status is Status.INTERNAL:
            raise InternalError(f"{self._rule.id} on {problem}:\n{outcome.error}")
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
        self._tally.result.seconds = time.monotonic() - started
        self._tally.conclude(self._wanted, self._rule.power)
        return self._tally.result


def wanted_problems(rule: Rule, profile: Profile) -> int:
    """Return how many problems of a rule a profile asks for."""
    return max(profile.least, round(profile.examples * rule.share))


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
    options = rule.drawn.options  # what the rule draws it also asks of the candidate
    if "relu2" in options and problem.activation not in traits.activations:
        return f"activation {problem.activation} is none of {', '.join(traits.activations)}"
    if {"float32_out", "float16_out"} & set(options) and problem.out_dtype not in traits.out_dtypes:
        return f"output type {problem.out_dtype} is none of {', '.join(traits.out_dtypes)}"
    return ""

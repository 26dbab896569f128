"""One candidate, loaded and measured once, and its mutants judged by one rule: problems outside, mutants inside."""

from __future__ import annotations

import copy
import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import stages_of, support_of, traits_of
from harness.candidates.errors import CandidateStartError
from harness.faults.fault import Fault, all_faults, parse_planting
from harness.faults.mutant import Mutant
from harness.faults.named import load_named
from harness.identification.measure import measure
from harness.judging.context import Context, Known
from harness.mutants.problems import drawn_problems, quick_first
from harness.problems.problem import Problem
from harness.problems.profiles import find_profile
from harness.problems.weights import make_weights
from harness.records.parts.mutants import (
    KILLED,
    NOT_JUDGED,
    NOT_PLANTED,
    SURVIVED,
    PlantingResult,
    RuleFailure,
)
from harness.rules import RULES, Rule, find_rules
from harness.running.judge import Watched, judge_context
from harness.running.outcome import Outcome, Status
from harness.verdict import UsageError

HOPELESS = (
    5  # problems in a row, from the first on, after which a candidate that fails all of them is given up
)
INNER = {
    "quantize_grouped",
    "silu_mul_quantize_grouped",
    "masked_grouped_gemm",
}  # what a layer is composed of


@dataclass
class Batch:
    """What came out of one batch: results in the order of the plantings, and problems on which the candidate itself fails."""

    results: list[PlantingResult]
    candidate_failures: list[RuleFailure]


class SharedProblem:
    """One problem whose numbers are made once for a candidate and all of its mutants.

    Every rule reads the same tensors in the same order whatever the candidate does, so that sharing them changes no
    number. A mutant that writes into them (that is a fault of its own) gets noticed, and they are made again.
    """

    def __init__(self, base: Any, problem: Problem, known: Known, rule: Rule) -> None:
        self._rule, self.problem = rule, problem
        self._context = Context(Watched(base), problem, known)
        self.calls = _Calls(base)
        self._context.candidate = Watched(self.calls)
        self.base = judge_context(rule, self._context)
        self._versions = _versions(self._context.tensors)

    def judge(self, candidate: Any) -> Outcome:
        """Judge a candidate on this problem; what harness.running.judge.Judge.judge returns."""
        context = copy.copy(self._context)
        context.candidate = Watched(candidate)
        outcome = judge_context(self._rule, context)
        if _versions(self._context.tensors) != self._versions:
            make_weights.cache_clear()
            self._context.tensors = self._context.fresh_tensors()
            self._context.candidate = Watched(self.calls.base)
            judge_context(self._rule, self._context)  # makes every tensor that the rule reads
            self._versions = _versions(self._context.tensors)
        return outcome


class _Calls:
    """A candidate that remembers which of its stages were called."""

    def __init__(self, base: Any) -> None:
        self.base = base
        self.stages: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.base, name)
        if not callable(value):
            return value

        @functools.wraps(value, updated=())
        def call(*arguments: Any, **named: Any) -> Any:
            self.stages.add(name)
            return value(*arguments, **named)

        return call


class Bench:
    """A candidate and what is known about it.

    Args:
        candidate: its name.
        profile: name of the profile that problems are drawn with.
        seed: of the problems.
        threads: of torch.

    Raises:
        UsageError: there is no such candidate.
        CandidateStartError: it cannot run here, with the reason.
    """

    def __init__(self, candidate: str, profile: str, seed: int = 0, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.name = candidate
        try:
            self.base = load_named(candidate)
        except UsageError:
            raise
        except (
            Exception
        ) as error:  # any reason why a candidate does not start is the answer, as in harness.running.check
            raise CandidateStartError(f"{type(error).__name__}: {error}") from error
        support = support_of(self.base)
        if not support:
            raise CandidateStartError(support.reason)
        # Hypothesis draws constants that it finds in the modules that are loaded: load the same ones in every process.
        all_faults()
        for rule in RULES:
            rule.function()
        self.profile, self.seed = find_profile(profile), seed
        self.measured = measure(self.base)
        self.problems = functools.cache(self._problems)

    def _problems(self, rule_id: str) -> list[Problem]:
        rule = find_rules([rule_id])[0]
        return quick_first(drawn_problems(rule, traits_of(self.base), self.profile, self.seed))

    def judge(self, rule_id: str, plantings: list[str], *, most: int = 0, deadline: float = 0) -> Batch:
        """Judge plantings by one rule until each is killed or the problems are used up.

        Args:
            rule_id: the rule.
            plantings: what is planted, each in a mutant of its own that meets all problems, as in `harness check`: a race
                that shows now and then, or a state left by an earlier call, goes on from problem to problem.
            most: most problems; 0 for all that the profile draws.
            deadline: `time.time()` after which no problem is judged; 0 for none.
        """
        rule = find_rules([rule_id])[0]
        results = [PlantingResult(text, rule_id) for text in plantings]
        failures: list[RuleFailure] = []
        if missing := [s for s in rule.stages if s not in stages_of(self.base)]:
            return Batch(_all(results, NOT_PLANTED, f"{rule_id} needs {', '.join(missing)}"), failures)
        alive = [(Mutant(self.base, [parse_planting(r.planting)]), r) for r in results]
        clean = 0
        problems = self.problems(rule_id)
        for problem in problems[:most] if most else problems:
            if not alive:
                break
            if deadline and time.time() > deadline:
                _all([r for _, r in alive], NOT_JUDGED, "the time was over")
                return Batch(results, failures)
            shared = SharedProblem(self.base, problem, self.measured.known, rule)
            if shared.base.status is Status.NOT_APPLICABLE:
                return Batch(_all(results, NOT_PLANTED, f"{rule_id}: {shared.base.error}"), failures)
            if how := _kill(shared.base):
                failures.append(RuleFailure(rule_id, str(problem), how[1]))
                if not clean and len(failures) == HOPELESS:
                    break
                continue
            clean += 1
            alive = [(mutant, r) for mutant, r in alive if not self._killed(shared, mutant, r)]
        for _, result in alive:
            result.status, result.message = SURVIVED, ""
            if clean <= len(failures):
                result.status = NOT_JUDGED
                result.message = f"the candidate itself fails {rule_id} on {len(failures)} of {clean + len(failures)} problems"
        return Batch(results, failures)

    def _killed(self, shared: SharedProblem, mutant: Mutant, result: PlantingResult) -> bool:
        """Judge a mutant on one problem and note it; return whether it was killed."""
        result.examples += 1
        if not self._reaches(mutant.plantings[0].fault, shared.calls.stages):
            return False  # no stage with the fault is called: its outcome is the candidate's own
        started = time.perf_counter()
        how = _kill(shared.judge(mutant))
        result.seconds += time.perf_counter() - started
        if how:
            result.status, result.problem, (result.how, result.message) = KILLED, str(shared.problem), how
        return bool(how)

    def _reaches(self, fault: Fault, called: set[str]) -> bool:
        """Return whether the fault is in a stage that was called; a layer composed of stages calls them."""
        stages, composed = set(fault.stages), called & {"masked_moe", "masked_moe_tapped"}
        if "load_experts" in stages.intersection(stages_of(self.base)):
            stages.discard("masked_moe")  # it is planted where the weights are loaded
        reached = called | (INNER | {"masked_moe"} if composed else set())
        if "routed_moe_tapped" in called:
            reached = reached | {"routed_moe"}
        if reached & {"masked_grouped_gemm", "routed_moe"}:
            reached = reached | {"prepare"}  # it multiplies by what that returns
        return bool(stages & reached)


def _kill(outcome: Outcome) -> tuple[str, str] | None:
    """Return how an outcome condemns a candidate, and the first line of why; None where it does not."""
    if outcome.status is not Status.JUDGED:
        return (outcome.status.value, outcome.error.splitlines()[0][:300])
    return ("illegal", outcome.illegal[0].message.splitlines()[0][:300]) if outcome.illegal else None


def _all(results: list[PlantingResult], status: str, message: str) -> list[PlantingResult]:
    for result in results:
        result.status, result.message = status, message
    return results


def _versions(tensors: Any) -> dict[str, int]:
    """Return how often each tensor of an object was written in place, those of its dataclasses included."""
    found: dict[str, int] = {}
    for name, value in vars(tensors).items():
        if isinstance(value, Tensor):
            found[name] = value._version  # noqa: SLF001 - torch offers no other way to see a write
        elif isinstance(value, (tuple, list)):
            found.update({f"{name}[{i}]": v._version for i, v in enumerate(value) if isinstance(v, Tensor)})  # noqa: SLF001
        elif hasattr(value, "__dataclass_fields__") and not isinstance(value, Problem):
            found.update({f"{name}.{inner}": count for inner, count in _versions(value).items()})
    return found

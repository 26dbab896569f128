"""The smallest problem that shows a fault: drawn and shrunk as `harness check` does it, then repeated afresh."""

from __future__ import annotations

from typing import Any

from harness.faults.named import load_named
from harness.mutants.bench import Bench
from harness.mutants.pool import BenchSettings, Job
from harness.records.parts.mutants import MinimalProblem
from harness.rules import find_rules
from harness.running.failure import reproduce_command
from harness.running.judge import Judge
from harness.running.outcome import Outcome
from harness.running.runner import RuleRun
from harness.running.session import InProcess
from harness.running.settings import RunSettings


class _Undiagnosed(InProcess):
    """The mutant in this process; nobody needs to be told which fault it is."""

    def __init__(self, name: str) -> None:
        super().__init__(load_named(name))

    def diagnose(self, *_arguments: Any, **_named: Any) -> list[dict[str, Any]]:
        """Return nothing."""
        return []


class _Forgetful(_Undiagnosed):
    """Each problem meets a mutant of its own, so that what shows a fault is the problem and not what came before it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._name = name

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:
        """Judge one problem through a new mutant."""
        return _Undiagnosed(self._name).judge(rule_id, problem, seconds)


def minimal_jobs(settings: BenchSettings, killed: dict[str, str]) -> list[Job]:
    """Return one job a fault; `killed` maps its name to the rule that kills it."""
    return [
        Job(
            settings,
            "minimal:minimal_problem",
            {"fault": fault, "rule_id": rule},
            f"the smallest problem of {fault}",
        )
        for fault, rule in killed.items()
    ]


def minimal_problem(bench: Bench, fault: str, rule_id: str) -> MinimalProblem | None:
    """Return the smallest problem on which a rule sees the fault everywhere; None where it is not found again.

    The mutant is probed here as `harness check` probes it, so that the command finds the same: a fault in the GEMM may
    keep its accumulator from being measured, and then a bound judges where bit equality did.
    """
    name = f"{bench.name}+{fault}"
    rule = find_rules([rule_id])[0]
    settings = RunSettings(bench.profile, bench.seed, candidate=name)
    for session in (
        _Undiagnosed,
        _Forgetful,
    ):  # a fault that remembers earlier problems may show on a later one only
        result = RuleRun(rule, session(name), settings).draw()
        if not result.failures:
            return None
        problem = result.failures[0].problem
        again = Judge(load_named(name)).judge(rule_id, problem)
        if again.fails:
            break
    return MinimalProblem(
        rule_id,
        problem,
        reproduce_command(rule_id, name, problem),
        result.failures[0].message.splitlines()[0],
        reproduced=again.fails,
    )

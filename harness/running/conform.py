"""Run every rule on a candidate from another project's own test: in one test, or in one test case a rule.

from harness import cases, conformance

def test_mine():
    conformance(MyCandidate())

@cases(MyCandidate)
def test_my_kernel(case):
    case()
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harness.candidates import CANDIDATES, made, stages_of, support_of
from harness.candidates.protocol import traits_of
from harness.extras import accept_no_numpy
from harness.problems.profiles import find_profile
from harness.records.record import RuleResult
from harness.rules import Rule, find_rules
from harness.running.gpus import on_own_gpu
from harness.running.rules import RuleFindings, judge_rules
from harness.running.session import InProcess
from harness.running.settings import RunSettings
from harness.verdict import Verdict

if TYPE_CHECKING:
    import pytest


class UnknownVerdictError(AssertionError):
    """Nothing could be judged, with the reason: not a pass."""


def conformance(
    candidate: Any,
    *,
    profile: str = "quick",
    rules: list[str] | None = None,
    seed: int = 0,
    max_seconds: float = 0,
) -> list[RuleResult]:
    """Judge a candidate by every rule that its stages allow, in this process.

    Args:
        candidate: an object with some of the stages of harness.candidates.protocol, or a class or function that makes
            one.
        profile: "quick", "standard" or "deep".
        rules: ids of rules; all of them by default.
        seed: of the drawn problems.
        max_seconds: per rule; 0 for no limit.

    Returns:
        The results of the rules that were judged.

    Raises:
        AssertionError: a rule failed; the message names the element, the problem and the rule.
        UnknownVerdictError: the candidate cannot run here, has no stage, or a rule could not be judged.
        UsageError: unknown profile or rule.
    """
    __tracebackhide__ = True  # pytest then shows the message under the caller's line, and none of this
    judged = _Judged(candidate, profile, seed, max_seconds)
    found = [judged.by(rule) for rule in find_rules(rules or [])]
    results = [each.result for each in found if each.result and not each.skipped]
    _raise_for(results)
    return results


def cases(
    candidate: Any,
    *,
    profile: str = "quick",
    rules: list[str] | None = None,
    seed: int = 0,
    max_seconds: float = 0,
) -> pytest.MarkDecorator:
    """Parametrize a test by the rules: `case()` judges the candidate by one of them, with its whole budget of problems.

    There is one case a rule, its id the rule's: a rule's problems are drawn after one another, a failing one is shrunk
    among them, and whether they had power is a question to all of them, so that a part of them has no verdict.

    Args:
        candidate: an object as `conformance` takes it, or a class or function that makes one. It is made once in a
            process, when its first case runs and never when tests are collected.
        profile: "quick", "standard" or "deep".
        rules: ids of rules; all of them by default.
        seed: of the drawn problems.
        max_seconds: per rule; 0 for no limit.

    Returns:
        A decorator for a test function with an argument `case`, or for a class of such.
        `case()` skips the test where the rule says nothing about the candidate, with the reason, and raises
        AssertionError and UnknownVerdictError as `conformance` does.

    Raises:
        UsageError: unknown profile or rule.
    """
    import pytest

    judged = _Judged(candidate, profile, seed, max_seconds)
    chosen = find_rules(rules or [])
    return pytest.mark.parametrize("case", [pytest.param(_Case(judged, rule), id=rule.id) for rule in chosen])


class _Judged:
    """A candidate of someone's test in this process: made, asked and measured when it is first judged.

    Raises:
        UsageError: unknown profile.
    """

    def __init__(self, given: Any, profile: str, seed: int, max_seconds: float) -> None:
        self._given = given
        self._settings = RunSettings(find_profile(profile), seed)
        self._max_seconds = max_seconds

    def by(self, rule: Rule) -> RuleFindings:
        """Judge it by one rule. Raises UnknownVerdictError where it cannot run here or has no stage."""
        __tracebackhide__ = True
        session = self._session
        with on_own_gpu(session.describe().traits["device"]):
            (found,) = judge_rules(session, [rule], self._settings, rule_seconds=self._max_seconds)
        return found

    @cached_property
    def _session(self) -> InProcess:
        __tracebackhide__ = True
        with warnings.catch_warnings():  # another project's test may turn warnings into errors
            accept_no_numpy()
            import torch  # noqa: F401 - it warns once, when it is loaded
        candidate = made(self._given)
        if not stages_of(candidate):
            raise UnknownVerdictError(
                "UNKNOWN: the candidate has none of the stages of harness.candidates.protocol"
            )
        support = support_of(candidate)
        if not support:
            raise UnknownVerdictError(f"UNKNOWN: the candidate cannot run here: {support.reason}")
        # What the command line would find it by: `name` is the candidate's own business, and inherited.
        named = candidate is not self._given and hasattr(self._given, "__qualname__")
        maker = self._given if named else type(candidate)
        address = f"{maker.__module__}:{maker.__qualname__}"
        self._settings.candidate = next((n for n, target in CANDIDATES.items() if target == address), address)
        with on_own_gpu(traits_of(candidate).device):
            return InProcess(candidate)


@dataclass(frozen=True, repr=False)
class _Case:
    """One rule on the candidate."""

    judged: _Judged
    rule: Rule

    def __repr__(self) -> str:
        return f"<case {self.rule.id}>"

    def __call__(self) -> None:
        __tracebackhide__ = True
        found = self.judged.by(self.rule)
        if found.skipped or found.result is None:
            import pytest

            pytest.skip(found.skipped)
        _raise_for([found.result])


def _raise_for(results: list[RuleResult]) -> None:
    """Raise what the results come to, if it is no pass."""
    __tracebackhide__ = True
    failed = [r for r in results if r.verdict is Verdict.FAIL]
    if failed:
        raise AssertionError("\n\n".join(failure.message for result in failed for failure in result.failures))
    unknown = [r for r in results if r.verdict is Verdict.UNKNOWN]
    if unknown or not results:
        reasons = (
            "; ".join(f"{r.rule}: {r.reason}" for r in unknown) or "no rule applies to the candidate's stages"
        )
        raise UnknownVerdictError(f"UNKNOWN: {reasons}")

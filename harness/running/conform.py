"""Run every rule on a candidate from another project's own test.

from harness import conformance

def test_mine():
    conformance(MyCandidate())
"""

from __future__ import annotations

import warnings
from typing import Any

from harness.candidates import CANDIDATES, Support, stages_of, support_of
from harness.extras import accept_no_numpy
from harness.problems.profiles import find_profile
from harness.records.record import RuleResult
from harness.rules import find_rules
from harness.running.rules import judge_rules
from harness.running.runner import RunSettings
from harness.running.session import InProcess
from harness.verdict import Verdict


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
        candidate: an object with some of the stages of harness.candidates.protocol.
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
    with warnings.catch_warnings():  # another project's test may turn warnings into errors
        accept_no_numpy()
        import torch  # noqa: F401 - it warns once, when it is loaded
    support: Support = support_of(candidate)
    if not support:
        raise UnknownVerdictError(f"UNKNOWN: the candidate cannot run here: {support.reason}")
    if not stages_of(candidate):
        raise UnknownVerdictError(
            "UNKNOWN: the candidate has none of the stages of harness.candidates.protocol"
        )
    session = InProcess(candidate)
    # What the command line would find it by: `name` is the candidate's own business, and inherited.
    address = f"{type(candidate).__module__}:{type(candidate).__qualname__}"
    name = next((name for name, target in CANDIDATES.items() if target == address), address)
    settings = RunSettings(find_profile(profile), seed, candidate=name)
    found = judge_rules(session, find_rules(rules or []), settings, rule_seconds=max_seconds)
    results = [each.result for each in found if each.result and not each.skipped]
    failed = [r for r in results if r.verdict is Verdict.FAIL]
    if failed:
        raise AssertionError("\n\n".join(failure.message for result in failed for failure in result.failures))
    unknown = [r for r in results if r.verdict is Verdict.UNKNOWN]
    if unknown or not results:
        reasons = (
            "; ".join(f"{r.rule}: {r.reason}" for r in unknown) or "no rule applies to the candidate's stages"
        )
        raise UnknownVerdictError(f"UNKNOWN: {reasons}")
    return results

"""The harness's test of its own checks: has each the power that it claims? Broken checks must be found out, rules must not.

Each check goes three ways, all of them the machinery of an ordinary run:

1. It judges right candidates on drawn problems (`harness.running.runner`). A verdict other than PASS gives it away: nothing
   compared, no power, valid rows that nobody looked at, or a false alarm.
2. It judges probes (`harness.mutants.probing`): one wrong element in one call. Every one of them must be noticed.
3. It judges faults of the catalog that its rule must kill. None killed is an empty row of the kill matrix: powerless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

from harness.candidates.protocol import stages_of, traits_of
from harness.problems.problem import Problem, parse_problem
from harness.problems.profiles import Profile
from harness.records.parts.mutants import CheckFinding, SelfTest
from harness.rules import RULES, Rule
from harness.running.outcome import Description, Outcome, Status
from harness.verdict import Verdict

# Small, and still with several experts, capacities and widths that are no multiples of tiles, and padding rows.
PROFILE = Profile("self-test", 24, 24, 4, 40, 128, 96, 1, 0, 60)
PROBING = ("3x9x64x32:9,4,7:normal:3", "2x5x48x48:4,4:normal:11")
MOST_FAULTS = 4
CANDIDATES = ("eager", "control:physical")
WITH_HINTS = "control:hints_change_tiles"
WITH_WEIGHTS_OF_ITS_OWN = "control:physical_prepared"


class _RuleSession:
    """A candidate that is judged by one rule object, which need not be among harness.rules.RULES."""

    def __init__(self, candidate: str, rule: Rule) -> None:
        self._candidate, self._known = _prepared(candidate)
        self._rule = rule
        self.left_out: dict[str, str] = {}

    def describe(self) -> Description:
        return Description(asdict(traits_of(self._candidate)), stages=stages_of(self._candidate))

    def judge(self, rule_id: str, problem: str, seconds: float) -> Outcome:  # noqa: ARG002 - a session's signature
        return _judged(self._rule, self._candidate, parse_problem(problem), self._known)

    def diagnose(self, *_arguments: Any) -> list[dict[str, Any]]:
        return []  # a failure of a right candidate is the check's, there is no fault to name

    def close(self) -> None:
        pass


@cache
def _prepared(candidate: str) -> tuple[Any, Any]:
    """Return a candidate and what is known about it, measured once."""
    from harness.faults.named import load_named
    from harness.identification.measure import measure

    loaded = load_named(candidate)
    return loaded, measure(loaded).known


def _judged(rule: Rule, candidate: Any, problem: Problem, known: Any) -> Outcome:
    from harness.judging.context import Context
    from harness.running.judge import Watched, judge_context

    return judge_context(rule, Context(Watched(candidate), problem, known))


def examine(name: str, rule: Rule) -> CheckFinding:
    """Return what is wrong with a check, if anything is.

    Args:
        name: of the check.
        rule: the check; its `function()` is what is examined.
    """
    finding = CheckFinding(name, rule.title, rule.id)
    _run(finding, rule)
    _probe(finding, rule)
    _kill(finding, rule)
    finding.how = _conclusion(finding, rule)
    finding.detected = bool(finding.how)
    return finding


def _candidates(rule: Rule) -> tuple[str, ...]:
    """Return the right candidates that a rule says something about."""
    if "prepare" in rule.stages:
        return (WITH_WEIGHTS_OF_ITS_OWN,)
    return (WITH_HINTS,) if rule.needs_hints else CANDIDATES


def _run(finding: CheckFinding, rule: Rule) -> None:
    """Run the check as `harness check` runs a rule, on right candidates."""
    from harness.running.runner import RuleRun
    from harness.running.settings import RunSettings

    finding.verdict = Verdict.PASS.value
    for candidate in _candidates(rule):
        session = _RuleSession(candidate, rule)
        result = RuleRun(rule, session, RunSettings(PROFILE, candidate=candidate)).draw()
        if result.verdict is not Verdict.PASS:
            finding.verdict, finding.reason = result.verdict.value, f"{candidate}: {result.reason}"
            return
        finding.reason = finding.reason or (result.skipped and f"not applicable: {result.skipped}")


def _probe(finding: CheckFinding, rule: Rule) -> None:
    """Plant every probe that the check's own calls allow, one at a time."""
    from harness.mutants.probing import Probe, Probed, probes, stages_with_calls

    base, known = _prepared(_candidates(rule)[0])
    seen: dict[str, bool] = {}
    for text in PROBING:
        problem = parse_problem(text)
        counted = Probed(base)
        if _judged(rule, counted, problem, known).status is Status.NOT_APPLICABLE:
            return
        stages = stages_with_calls(base, counted.calls)
        planned = list(probes(counted.calls, stages, every_call=rule.knows_values))
        if rule.judges_inputs:
            planned = [
                Probe(stage, call, "input changed")
                for stage in stages
                for call in range(counted.calls[stage])
            ]
        for probe in planned:
            candidate = Probed(base, probe)
            outcome = _judged(rule, candidate, problem, known)
            if not candidate.applied or probe.stage in rule.unjudged:
                continue
            finding.planted += 1
            noticed = _failed(outcome) or (probe.kind == "raises" and _refused(outcome, rule))
            what = f"{probe.kind} of {probe.stage}"
            seen[what] = seen.get(what, False) or noticed
            if noticed:
                finding.noticed += 1
            elif len(finding.unnoticed) < 8:
                hidden = " (the check went on after an error)" if outcome.hidden else ""
                finding.unnoticed.append(f"{probe}{hidden}")
    finding.unseen = [what for what, noticed in seen.items() if not noticed]


def _failed(outcome: Outcome) -> bool:
    """Return whether the check itself, and not the harness around it, found a mistake."""
    if outcome.status is Status.JUDGED:
        return bool(outcome.illegal)
    return not outcome.hidden


def _refused(outcome: Outcome, rule: Rule) -> bool:
    """Return whether the check took an error for a refusal, which it may."""
    return rule.may_refuse and any("refused with an error" in c.judged for c in outcome.comparisons)


def _kill(finding: CheckFinding, rule: Rule) -> None:
    """Judge a few faults of the catalog that the rule must kill, everywhere at full strength."""
    from harness.faults.fault import Planting, all_faults
    from harness.faults.mutant import Mutant

    base, known = _prepared(_candidates(rule)[-1])
    # a check that fails the right candidate kills nothing with that
    clean = [p for p in map(parse_problem, PROBING) if not _failed(_judged(rule, base, p, known))]
    traits = traits_of(base)
    named = [
        f for f in all_faults().values() if f.killed_by == rule.id and f.random_data and not f.unfit(traits)
    ]
    for fault in named[:: max(1, len(named) // MOST_FAULTS)][:MOST_FAULTS]:
        outcomes = (_judged(rule, Mutant(base, [Planting(fault)]), problem, known) for problem in clean)
        finding.faults += 1
        finding.killed += any(_failed(outcome) for outcome in outcomes)


def _conclusion(finding: CheckFinding, rule: Rule) -> str:
    """Return why a check cannot be trusted, or ""."""
    if finding.verdict == Verdict.UNKNOWN.value:
        return f"UNKNOWN on a right candidate, {finding.reason}"
    if finding.verdict == Verdict.FAIL.value:
        return f"FAIL on a right candidate, {finding.reason}"
    if finding.planted and not finding.noticed:
        return f"powerless: it noticed none of {finding.planted} probes"
    if finding.faults and not finding.killed:
        return f"powerless: it kills none of {finding.faults} faults that {rule.id} must kill"
    missed = finding.planted - finding.noticed
    if missed and (rule.every_row or finding.unseen):
        return f"blind: {missed} of {finding.planted} probes went unnoticed, first: {finding.unnoticed[0]}"
    # A rule about some of the rows lets pass what lies in the others, but no kind of mistake altogether.
    return ""


def self_test(progress: Callable[[str], None] = lambda _name: None) -> list[CheckFinding]:
    """Examine every broken check.

    Args:
        progress: called with the name of each check before it is examined.

    Returns:
        One a check; `detected` must be true in all of them.
    """
    from harness.mutants.broken_checks import BROKEN_CHECKS

    findings = []
    for name, rule in BROKEN_CHECKS.items():
        progress(name)
        findings.append(examine(name, rule))
    return findings


def rules_test(progress: Callable[[str], None] = lambda _name: None) -> list[CheckFinding]:
    """Examine every rule that compares outputs; `detected` must be false in all of them.

    DECLARED compares findings: an element that is changed is one that no model gives, and what it must notice are the
    mistakes planted in tests/identification.
    """
    findings = []
    for rule in (rule for rule in RULES if not rule.once):
        progress(rule.id)
        findings.append(examine(rule.id, rule))
    return findings


def run_self_test(progress: Callable[[str], None] = lambda _name: None) -> SelfTest:
    """Examine the broken checks and the rules; `passed` where all is as it must be."""
    started = time.perf_counter()
    broken, rules = self_test(progress), rules_test(progress)
    passed = all(f.detected for f in broken) and not any(f.detected for f in rules)
    return SelfTest(passed, time.perf_counter() - started, broken, rules)

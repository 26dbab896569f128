"""A record as a flat list of cases: what JUnit, the step summary and the annotations all show.

A case is one thing that can be right or wrong: a rule on a candidate, a step of the GSM8K gate, the canary through one
candidate, the mutation score. Whatever went wrong is a failure, also when it is the infrastructure's fault: consumers
drop "errors" and show such runs as passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.records.parts.canary import CanaryPart
from harness.records.parts.gsm8k import NOT_DEAD, Gsm8kRun
from harness.records.parts.mutants import NOT_JUDGED, SURVIVED, MutantsRun
from harness.records.record import RuleResult, RunRecord
from harness.verdict import Verdict

GSM8K_CASES = ("reachable", "alive", "answers", "accuracy")
_GSM8K_CASE_OF = {
    "infra": "reachable",
    "dead": "alive",
    "degenerate": "answers",
    "format": "answers",
    "truncated": "answers",
    "load": "answers",
    "accuracy": "accuracy",
    "undecided": "accuracy",
    "unlike": "accuracy",
    "not judged": "accuracy",
}


@dataclass(frozen=True)
class CiCase:
    """One case.

    Attributes:
        suite: which part of the harness: "harness.rules.eager", "harness.gsm8k", ...
        name: of the case within it.
        verdict: PASS, FAIL or UNKNOWN; None where it was not judged.
        label: the verdict with its qualifier: "FAIL (dead)".
        text: reason and details of a case that is not a PASS, why it was not judged, or "".
        seconds: it took.
        reproduce: command that repeats it, or "".
    """

    suite: str
    name: str
    verdict: Verdict | None
    label: str
    text: str = ""
    seconds: float = 0.0
    reproduce: str = ""


def cases_of(record: RunRecord) -> list[CiCase]:
    """Return every case of a record, part by part. Raises RecordError with the name of a damaged field."""
    found = [*map(_rule_case, record.rules), *_not_run(record)]
    if (run := record.gsm8k_run) is not None:
        found += gsm8k_cases(run, record.seconds)
    if (canary := record.canary_part) is not None:
        found += _canary_cases(canary)
    if (mutants := record.mutants_run) is not None:
        found += _mutant_cases(mutants, record.seconds)
    if not found or (
        record.verdict is not Verdict.PASS and all(c.verdict in {Verdict.PASS, None} for c in found)
    ):
        # Interrupted, too few traps, an internal error: the run is not a PASS though no single case says so.
        found.append(
            CiCase(
                "harness",
                "run",
                record.verdict,
                record.verdict.value,
                "\n".join([record.reason, *record.errors]),
                record.seconds,
            )
        )
    return found


def _rule_case(result: RuleResult) -> CiCase:
    suite = f"harness.rules.{result.candidate}"
    if result.skipped:
        return CiCase(suite, result.rule, None, "not applicable", result.skipped, result.seconds)
    messages = [failure.message for failure in result.failures if failure.kind != "known"]
    text = "" if result.verdict is Verdict.PASS else "\n\n".join(messages) or result.reason
    command = next((failure.reproduce for failure in result.failures if failure.kind != "known"), "")
    return CiCase(suite, result.rule, result.verdict, result.verdict.value, text, result.seconds, command)


def _not_run(record: RunRecord) -> Iterator[CiCase]:
    for candidate in record.candidates:
        if not candidate.ran:
            verdict = Verdict.UNKNOWN if candidate.requested else None
            label = verdict.value if verdict else "not run"
            yield CiCase(f"harness.rules.{candidate.name}", "support", verdict, label, candidate.reason)


def gsm8k_cases(run: Gsm8kRun, seconds: float) -> list[CiCase]:
    """Return the four steps of the gate; what comes behind the one that broke was not judged."""
    from harness.ci.gsm8k_lines import lines

    bad = run.verdict in {"FAIL", "UNKNOWN"}
    broken = _GSM8K_CASE_OF.get(run.qualifier, "accuracy") if bad else ""
    not_judged: tuple[str, ...] = GSM8K_CASES[GSM8K_CASES.index(broken) + 1 :] if broken else ()
    if run.qualifier == "unlike" and not run.answered:  # nothing was asked
        not_judged = tuple(name for name in GSM8K_CASES if name != broken)
    if run.verdict == NOT_DEAD:
        not_judged = ("accuracy",)
    found = []
    for name in GSM8K_CASES:
        took = seconds if name == "accuracy" else 0.0
        if name == broken:
            text = "\n".join([run.reason, *lines(run)])
            found.append(CiCase("harness.gsm8k", name, Verdict(run.verdict), run.label, text, took))
        elif name in not_judged:
            found.append(CiCase("harness.gsm8k", name, None, "not judged", "not judged", took))
        else:
            found.append(CiCase("harness.gsm8k", name, Verdict.PASS, "PASS", "", took))
    return found


def _canary_cases(canary: CanaryPart) -> Iterator[CiCase]:
    for run in canary.runs:
        verdict = Verdict(run.verdict)
        text = "" if verdict is Verdict.PASS else run.reason
        took = run.seconds.get("total") or 0.0
        yield CiCase("harness.canary", run.candidate, verdict, run.label, text, took, run.reproduce)
    for run in canary.controls:
        seen = run.verdict == Verdict.FAIL
        verdict = Verdict.PASS if seen else Verdict.UNKNOWN
        text = "" if seen else f"a planted fault must FAIL, got {run.label}: {run.reason}"
        yield CiCase("harness.canary", f"{run.candidate} (control)", verdict, verdict.value, text)


def _mutant_cases(mutants: MutantsRun, seconds: float) -> Iterator[CiCase]:
    if mutants.scored:
        bad = [fault for fault in mutants.faults if fault.status in {SURVIVED, NOT_JUDGED}]
        survived = any(fault.status == SURVIVED for fault in bad)
        judged = bool(mutants.score.killed or mutants.score.survived)
        verdict = Verdict.FAIL if survived else Verdict.PASS if judged else Verdict.UNKNOWN
        text = "\n".join(
            f"{fault.name} {fault.status}: must be killed by {fault.killed_by}: {fault.title}"
            for fault in bad
        )
        yield CiCase("harness.mutants", "score", verdict, verdict.value, text, seconds)

"""A record as a flat list of cases: what JUnit, the step summary and the annotations all show.

A case is one thing that can be right or wrong: a rule on a candidate, a step of the GSM8K gate, the canary through one
candidate, the mutation score. Whatever went wrong is a failure, also when it is the infrastructure's fault: consumers
drop "errors" and show such runs as passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.records.record import RuleResult, RunRecord
from harness.verdict import Verdict

GSM8K_CASES = ("reachable", "alive", "answers", "accuracy")
_GSM8K_CASE_OF = {
    "infra": "reachable",
    "dead": "alive",
    "degenerate": "answers",
    "format": "answers",
    "truncated": "answers",
    "accuracy": "accuracy",
    "undecided": "accuracy",
}


@dataclass(frozen=True)
class Case:
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


def cases_of(record: RunRecord) -> list[Case]:
    """Return every case of a record, stage by stage."""
    found = [*map(_rule_case, record.rules), *_not_run(record)]
    if record.gsm8k:
        found += gsm8k_cases(record.gsm8k, record.seconds)
    if record.canary:
        found += _canary_cases(record.canary)
    if record.mutants:
        found += _mutant_cases(record.mutants, record.seconds)
    if not found or (
        record.verdict is not Verdict.PASS and all(c.verdict in {Verdict.PASS, None} for c in found)
    ):
        # Interrupted, too few traps, an internal error: the run is not a PASS though no single case says so.
        found.append(
            Case(
                "harness",
                "run",
                record.verdict,
                record.verdict.value,
                "\n".join([record.reason, *record.errors]),
                record.seconds,
            )
        )
    return found


def _rule_case(result: RuleResult) -> Case:
    suite = f"harness.rules.{result.candidate}"
    if result.skipped:
        return Case(suite, result.rule, None, "not applicable", result.skipped, result.seconds)
    messages = [failure.message for failure in result.failures if failure.kind != "known"]
    text = "" if result.verdict is Verdict.PASS else "\n\n".join(messages) or result.reason
    command = next((failure.reproduce for failure in result.failures if failure.kind != "known"), "")
    return Case(suite, result.rule, result.verdict, result.verdict.value, text, result.seconds, command)


def _not_run(record: RunRecord) -> Iterator[Case]:
    for candidate in record.candidates:
        if not candidate.ran:
            verdict = Verdict.UNKNOWN if candidate.requested else None
            label = verdict.value if verdict else "not run"
            yield Case(f"harness.rules.{candidate.name}", "support", verdict, label, candidate.reason)


def gsm8k_label(stage: Mapping[str, Any]) -> str:
    """Return the verdict of a GSM8K stage with its qualifier: FAIL (dead)."""
    qualifier = stage.get("qualifier")
    return f"{stage.get('verdict')} ({qualifier})" if qualifier else str(stage.get("verdict"))


def gsm8k_cases(stage: Mapping[str, Any], seconds: float) -> list[Case]:
    """Return the four steps of the gate; what comes behind the one that broke was not judged."""
    from harness.ci.gsm8k_lines import lines

    word = stage.get("verdict")
    bad = word in {"FAIL", "UNKNOWN"}
    broken = _GSM8K_CASE_OF.get(str(stage.get("qualifier")), "accuracy") if bad else ""
    not_judged: tuple[str, ...] = GSM8K_CASES[GSM8K_CASES.index(broken) + 1 :] if broken else ()
    if word == "NOT DEAD":
        not_judged = ("accuracy",)
    found = []
    for name in GSM8K_CASES:
        took = seconds if name == "accuracy" else 0.0
        if name == broken:
            text = "\n".join([str(stage.get("reason")), *lines(stage)])
            found.append(Case("harness.gsm8k", name, Verdict(str(word)), gsm8k_label(stage), text, took))
        elif name in not_judged:
            found.append(Case("harness.gsm8k", name, None, "not judged", "not judged", took))
        else:
            found.append(Case("harness.gsm8k", name, Verdict.PASS, "PASS", "", took))
    return found


def _canary_cases(canary: Mapping[str, Any]) -> Iterator[Case]:
    for run in canary.get("runs") or []:
        verdict = Verdict(run["verdict"])
        text = "" if verdict is Verdict.PASS else str(run.get("reason", ""))
        took = float((run.get("seconds") or {}).get("total") or 0.0)
        yield Case(
            "harness.canary",
            str(run["candidate"]),
            verdict,
            gsm8k_label(run),
            text,
            took,
            str(run.get("reproduce", "")),
        )
    for run in canary.get("controls") or []:
        seen = run["verdict"] == Verdict.FAIL
        verdict = Verdict.PASS if seen else Verdict.UNKNOWN
        text = "" if seen else f"a planted fault must FAIL, got {gsm8k_label(run)}: {run.get('reason', '')}"
        yield Case("harness.canary", f"{run['candidate']} (control)", verdict, verdict.value, text)


def _mutant_cases(mutants: Mapping[str, Any], seconds: float) -> Iterator[Case]:
    score = mutants.get("score")
    if score:
        bad = [f for f in mutants.get("faults") or [] if f.get("status") in {"survived", "not judged"}]
        survived = any(f["status"] == "survived" for f in bad)
        judged = bool(score.get("killed") or score.get("survived"))
        verdict = Verdict.FAIL if survived else Verdict.PASS if judged else Verdict.UNKNOWN
        text = "\n".join(
            f"{f['name']} {f['status']}: must be killed by {f.get('killed_by')}: {f.get('title')}"
            for f in bad
        )
        yield Case("harness.mutants", "score", verdict, verdict.value, text, seconds)

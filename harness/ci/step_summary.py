"""The Markdown that GitHub shows as a step's summary: the verdict, what is broken with its diagnosis, and the counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from harness.ci.cases import Case, cases_of, gsm8k_label
from harness.ci.gsm8k_lines import lines
from harness.ci.text import markdown, preformatted
from harness.records.record import RunRecord
from harness.verdict import Verdict

MOST_SHOWN = 10  # failures in full; GitHub cuts a summary at 1 MiB
MOST_TEXT = 3000
_ICONS = {"PASS": ":white_check_mark:", "FAIL": ":x:", "UNKNOWN": ":grey_question:"}


def append_step_summary(record: RunRecord, path: Path) -> None:
    """Append the run to the file that GitHub shows as the step's summary."""
    with path.open("a", encoding="utf-8") as file:
        file.write(step_summary(record) + "\n")


def step_summary(record: RunRecord) -> str:
    """Return the run as Markdown."""
    cases = cases_of(record)
    bad = [c for c in cases if c.verdict in {Verdict.FAIL, Verdict.UNKNOWN}]
    title = "GSM8K" if record.gsm8k and not record.rules else "FP4 MoE harness"
    label = gsm8k_label(record.gsm8k) if record.gsm8k and not record.rules else record.verdict.value
    rows = [f"### {_ICONS[record.verdict.value]} {title}: {markdown(label)}", "", markdown(record.reason), ""]
    for case in bad[:MOST_SHOWN]:
        rows += [
            f"**{markdown(case.suite.removeprefix('harness.'))}: {markdown(case.name)}** {markdown(case.label)}",
            "",
        ]
        rows += [preformatted(case.text[:MOST_TEXT]), ""]
    if len(bad) > MOST_SHOWN:
        rows += [f"{len(bad) - MOST_SHOWN} more in the report.", ""]
    if record.rules:
        rows += [*_rules(record, cases), ""]
    if record.gsm8k:
        rows += [*_gsm8k(record.gsm8k), ""]
    if record.canary and record.canary.get("runs"):
        rows += [*_canary(record.canary), ""]
    return "\n".join(rows)


def _rules(record: RunRecord, cases: list[Case]) -> list[str]:
    rows = [
        "| candidate | PASS | FAIL | UNKNOWN | not applicable | elements compared |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(result.candidate for result in record.rules):
        own = Counter(
            case.verdict.value if case.verdict else "none"
            for case in cases
            if case.suite == f"harness.rules.{name}" and case.name != "support"
        )
        compared = sum(result.compared for result in record.rules if result.candidate == name)
        counts = " | ".join(str(own[word]) for word in ("PASS", "FAIL", "UNKNOWN", "none"))
        rows.append(f"| {markdown(name)} | {counts} | {compared:,} |")
    return rows


def _gsm8k(stage: dict[str, Any]) -> list[str]:
    rows = ["| extractor | accuracy | 95 % interval |", "|---|---|---|"]
    for name in ("strict", "flexible", "numeric"):
        interval = stage["intervals"][name]
        if interval:
            rows.append(
                f"| {name} | {stage[f'accuracy_{name}']:.4f} | {interval[0]:.4f} to {interval[1]:.4f} |"
            )
    rows += ["", f"{markdown(stage['server']['model'])}, task {markdown(stage['task']['name'])}", ""]
    return rows + [f"* {markdown(line)}" for line in lines(stage)[3 if stage["answered"] else 0 :]]


def _canary(canary: dict[str, Any]) -> list[str]:
    rows = ["| canary through | verdict | accuracy |", "|---|---|---|"]
    for run in [*canary["runs"], *(canary.get("controls") or [])]:
        accuracy = run.get("accuracy_strict")
        shown = "" if accuracy is None else f"{accuracy:.3f}"
        rows.append(f"| {markdown(str(run['candidate']))} | {markdown(gsm8k_label(run))} | {shown} |")
    return rows

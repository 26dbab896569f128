"""The Markdown that GitHub shows as a step's summary: the verdict, what is broken with its diagnosis, and the counts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from harness.ci.cases import CiCase, cases_of
from harness.ci.gsm8k_lines import lines
from harness.ci.text import markdown, preformatted
from harness.records.parts.canary import CanaryPart
from harness.records.parts.gsm8k import Gsm8kRun
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
    run, canary = record.gsm8k_run, record.canary_part
    title, label = (
        ("GSM8K", run.label) if run and not record.rules else ("FP4 MoE harness", record.verdict.value)
    )
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
    if run is not None:
        rows += [*_gsm8k(run), ""]
    if canary is not None and canary.runs:
        rows += [*_canary(canary), ""]
    return "\n".join(rows)


def _rules(record: RunRecord, cases: list[CiCase]) -> list[str]:
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


def _gsm8k(run: Gsm8kRun) -> list[str]:
    rows = ["| extractor | accuracy | 95 % interval |", "|---|---|---|"]
    for name in ("strict", "flexible", "numeric"):
        interval, accuracy = run.intervals.get(name), run.accuracy_by(name)
        if interval and accuracy is not None:
            rows.append(f"| {name} | {accuracy:.4f} | {interval[0]:.4f} to {interval[1]:.4f} |")
    rows += ["", f"{markdown(run.model)}, task {markdown(run.task_name)}", ""]
    return rows + [f"* {markdown(line)}" for line in lines(run)[3 if run.answered else 0 :]]


def _canary(canary: CanaryPart) -> list[str]:
    rows = ["| canary through | verdict | accuracy |", "|---|---|---|"]
    for run in (*canary.runs, *canary.controls):
        shown = "" if run.accuracy_strict is None else f"{run.accuracy_strict:.3f}"
        rows.append(f"| {markdown(run.candidate)} | {markdown(run.label)} | {shown} |")
    return rows

"""JUnit XML and the GitHub step summary, drawn from a record.

Four test cases: reachable, alive, answers, accuracy. What went wrong is a `failure` of one of them, also when it is the
infrastructure's fault: consumers drop `errors` and show such runs as passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.record import RunRecord

CASES = ("reachable", "alive", "answers", "accuracy")
_CASE_OF = {
    "infra": "reachable",
    "dead": "alive",
    "degenerate": "answers",
    "format": "answers",
    "truncated": "answers",
    "accuracy": "accuracy",
    "undecided": "accuracy",
}


def write_junit(record: RunRecord, path: Path) -> None:
    """Write the run as JUnit XML."""
    stage = record.gsm8k or {}
    broken = (
        _CASE_OF.get(str(stage.get("qualifier")), "accuracy")
        if stage.get("verdict") in {"FAIL", "UNKNOWN"}
        else None
    )
    not_judged = CASES[CASES.index(broken) + 1 :] if broken else ()
    if stage.get("verdict") == "NOT DEAD":
        not_judged = ("accuracy",)
    suite = ET.Element(
        "testsuite",
        name="harness.gsm8k",
        tests=str(len(CASES)),
        failures=str(int(broken is not None)),
        errors="0",
        skipped=str(len(not_judged)),
        time=f"{record.seconds:.3f}",
        timestamp=record.created,
    )
    for name in CASES:
        case = ET.SubElement(suite, "testcase", classname="harness.gsm8k", name=name, time="0")
        if name == "accuracy":
            case.set("time", f"{record.seconds:.3f}")
        if name == broken:
            text = _printable(str(stage.get("reason")))
            failure = ET.SubElement(case, "failure", type=label(stage), message=text[:400])
            failure.text = "\n".join([text, *map(_printable, lines(stage))])
        elif name in not_judged:
            ET.SubElement(case, "skipped", message="not judged")
    ET.indent(suite)
    content = ET.tostring(suite, encoding="unicode", xml_declaration=False)
    path.write_text('<?xml version="1.0" encoding="UTF-8"?>\n' + content + "\n", encoding="utf-8")


def label(stage: Mapping[str, Any]) -> str:
    """Return the verdict with its qualifier: FAIL (dead)."""
    return (
        f"{stage.get('verdict')} ({stage['qualifier']})"
        if stage.get("qualifier")
        else str(stage.get("verdict"))
    )


def lines(stage: Mapping[str, Any]) -> list[str]:
    """Return the result in lines of plain text: accuracies, counts, classes, errors with their counts, notes."""
    said = []
    for name in ("strict", "flexible", "numeric"):
        interval = (stage.get("intervals") or {}).get(name)
        if interval and stage.get(f"accuracy_{name}") is not None:
            low, high = interval
            said.append(f"{name:9} {stage[f'accuracy_{name}']:.4f} ({low:.4f} to {high:.4f})")
    counted = f"{stage['answered']:,} of {stage['questions']:,} questions answered, {stage['unanswered']:,} unanswered"
    not_asked = f", {stage['not_asked']:,} not asked" if stage["not_asked"] else ""
    said.append(
        f"{counted}{not_asked}; {stage['requests']['sent']:,} requests in {stage['seconds']['requests']:.1f} s"
    )
    if stage["classes"]:
        said.append("classes: " + ", ".join(f"{name} {n:,}" for name, n in stage["classes"].items()))
    for error in stage["errors"]:
        lost = f", {error['gave_up']} given up" if error["gave_up"] else ""
        said.append(f"error, {error['count']} times{lost}: {error['error']}")
    said += [f"note: {note}" for note in (*stage["notes"], *stage["task"]["notes"])]
    return said


def append_step_summary(record: RunRecord, path: Path) -> None:
    """Append the run to the file that GitHub shows as the step's summary."""
    stage = record.gsm8k or {}
    rows = [f"### GSM8K: {_markdown(label(stage))}", "", _markdown(str(stage.get("reason"))), ""]
    rows += ["| extractor | accuracy | 95 % interval |", "|---|---|---|"]
    for name in ("strict", "flexible", "numeric"):
        interval = stage["intervals"][name]
        if interval:
            rows.append(
                f"| {name} | {stage[f'accuracy_{name}']:.4f} | {interval[0]:.4f} to {interval[1]:.4f} |"
            )
    rows += ["", f"{_markdown(stage['server']['model'])}, task {_markdown(stage['task']['name'])}", ""]
    rows += [f"* {_markdown(line)}" for line in lines(stage)[3 if stage["answered"] else 0 :]]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(rows) + "\n\n")


def _markdown(text: str) -> str:
    """Escape text that a server or model wrote: it may hold markup."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for character in "\\`*_[]|#!~":
        text = text.replace(character, "\\" + character)
    return text


def _printable(text: str) -> str:
    """Replace characters that XML cannot hold."""
    return "".join(
        c if c in "\t\n" or (c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF) else "?" for c in text
    )

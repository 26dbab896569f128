"""JUnit XML of a run: one test suite for each part of the harness, one test case for each thing that was judged."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from harness.ci.cases import CiCase, cases_of
from harness.ci.text import printable
from harness.records.record import RunRecord
from harness.records.whole_files import write_whole
from harness.verdict import Verdict

MESSAGE = 400  # characters of a failure's message attribute; the element's text has all of it


def write_junit(record: RunRecord, path: Path) -> None:
    """Write the run as JUnit XML. What went wrong is a `failure`, UNKNOWN included; nothing is an `error`."""
    suites: dict[str, list[CiCase]] = {}
    for case in cases_of(record):
        suites.setdefault(case.suite, []).append(case)
    root = ET.Element("testsuites", name="harness", time=f"{record.seconds:.3f}")
    for name, cases in suites.items():
        suite = ET.SubElement(
            root,
            "testsuite",
            name=printable(name),
            tests=str(len(cases)),
            failures=str(sum(case.verdict in {Verdict.FAIL, Verdict.UNKNOWN} for case in cases)),
            errors="0",
            skipped=str(sum(case.verdict is None for case in cases)),
            time=f"{sum(case.seconds for case in cases):.3f}",
            timestamp=record.created,
        )
        for case in cases:
            _add(suite, case)
    ET.indent(root)
    content = ET.tostring(root, encoding="unicode", xml_declaration=False)
    write_whole(path, '<?xml version="1.0" encoding="UTF-8"?>\n' + content + "\n")


def _add(suite: ET.Element, case: CiCase) -> None:
    element = ET.SubElement(
        suite,
        "testcase",
        classname=printable(case.suite),
        name=printable(case.name),
        time=f"{case.seconds:.3f}",
    )
    if case.verdict is None:
        ET.SubElement(element, "skipped", message=printable(case.text)[:MESSAGE])
    elif case.verdict is not Verdict.PASS:
        text = printable(case.text)
        first = text.splitlines()[0] if text else case.label
        failure = ET.SubElement(element, "failure", type=printable(case.label), message=first[:MESSAGE])
        failure.text = text

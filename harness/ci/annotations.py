"""GitHub annotations: one line of a workflow's log for each failure, which GitHub shows beside the change."""

from __future__ import annotations

from collections.abc import Iterator

from harness.ci.cases import cases_of
from harness.ci.text import command_property, command_value
from harness.records.record import RunRecord
from harness.verdict import Verdict

MOST = 10  # GitHub shows ten errors and ten warnings of a step
MOST_TEXT = 2000


def github_annotations(record: RunRecord) -> Iterator[str]:
    """Yield the workflow commands of a run: an error for each FAIL, a warning for each UNKNOWN."""
    for verdict, level in ((Verdict.FAIL, "error"), (Verdict.UNKNOWN, "warning")):
        bad = [case for case in cases_of(record) if case.verdict is verdict]
        for case in bad[:MOST]:
            title = f"{case.suite.removeprefix('harness.')} {case.name}: {case.label}"
            yield f"::{level} title={command_property(title)}::{command_value(case.text[:MOST_TEXT])}"

"""The failures of a record that a command repeats."""

from __future__ import annotations

from pathlib import Path

from harness.records.from_json import RecordError
from harness.records.record import Failure, load_record
from harness.verdict import UsageError


def failures_of(file: Path) -> list[Failure]:
    """Return the failures of a record that have a problem, in the order of their numbers on the command line, from 1.

    Raises:
        UsageError: the record cannot be read.
    """
    try:
        record = load_record(file)
    except RecordError as error:
        raise UsageError(str(error)) from error
    return [failure for failure in record.failures if failure.problem]

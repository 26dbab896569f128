"""What tests of shared runs share: records without what differs from run to run, and small runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from harness.problems.profiles import PROFILES
from harness.records.record import RunRecord, load_record
from harness.rules import find_rules
from harness.running.check import CheckRequest, Progress, run_check
from harness.running.shared.asked import AskedSharing

# Under its own name in the record, since whoever merges looks it up: tests put it there.
SMALL = dataclasses.replace(
    PROFILES["quick"], examples=8, least=4, experts=3, capacity=20, k=64, n=32, problem_seconds=30
)
_OWN = ("run_id", "created", "command", "seconds", "environment", "sharing", "shard")


def what_was_found(record: RunRecord) -> dict[str, Any]:
    """Everything in a record but who made it, when, how and how long it took."""
    found: dict[str, Any] = json.loads(record.to_json())
    for rule in found["rules"]:
        del rule["seconds"]
    return {name: value for name, value in found.items() if name not in _OWN}


def judged(
    candidates: list[str],
    rules: list[str],
    sharing: AskedSharing | None = None,
    *,
    progress: Progress | None = None,
    **words: Any,
) -> RunRecord:
    """Run rules on candidates; the record is what a reader of its file gets."""
    request = CheckRequest(
        candidates, find_rules(rules), words.pop("profile", SMALL), threads=1, all_rules=not rules,
        sharing=sharing or AskedSharing(), **words,
    )  # fmt: skip
    record = RunRecord("run", "now", ["harness", "check"], profile="quick", seed=request.seed)
    return run_check(request, record, progress or Progress())


def reread(record: RunRecord, folder: Path) -> RunRecord:
    """Return a record as it comes back from its file."""
    record.write(folder / f"{record.shard['number'] if record.shard else 'record'}.json")
    return load_record(folder / f"{record.shard['number'] if record.shard else 'record'}.json")

"""The records that the tests of comparisons begin with: `kept/`, a changed copy, and a copy of another day."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from harness.records.record import RuleResult, RunRecord, load_record
from harness.verdict import Verdict

RECORDS = Path(__file__).parent / "kept"


def read(name: str) -> RunRecord:
    return load_record(RECORDS / f"{name}.json")


def with_rule(
    verdict: str, *, skipped: str = "", ratio: float | None = 0.5, seconds: float = 1.0, examples: int = 40
) -> RunRecord:
    record = read("pass")
    word = Verdict(verdict) if verdict in set(Verdict) else Verdict.UNKNOWN
    rule = RuleResult("REPEAT", "the same bits", "eager", word, f"{verdict} here", seconds=seconds)
    rule.examples, rule.skipped, rule.worst_ratio = (0, skipped, None) if skipped else (examples, "", ratio)
    record.rules.append(rule)
    record.verdict = word
    return record


def put(record: RunRecord, folder: Path, day: int, **changes: Any) -> None:
    """Write a record of a day of January 2027, with other packages and verdicts of a rule REPEAT."""
    record = copy.deepcopy(record)
    record.created = f"2027-01-{day:02}T06:30:00+00:00"
    record.environment.packages = {"torch": changes.pop("torch", "2.13.0")}
    record.environment.git_commit = ("a" if day < 4 else "b") * 40
    record.environment.gpus = changes.pop("gpus", [])
    word = changes.pop("repeat", "")
    if word:
        rule = RuleResult("REPEAT", "same bits", "eager", Verdict(word), f"{word} on day {day}", examples=4)
        rule.worst_ratio, rule.seconds = changes.pop("ratio", 0.5), 2.0
        record.rules.append(rule)
    assert not changes
    (folder / f"day{day}").mkdir(parents=True)
    record.write(folder / f"day{day}" / "record.json")

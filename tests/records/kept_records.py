"""The records that the tests of comparisons begin with: `kept/`, and a changed copy."""

from __future__ import annotations

from pathlib import Path

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

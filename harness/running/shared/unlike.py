"""Whether records are the shards of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.records.from_json import RecordError, build_from_json
from harness.records.parts.sharing import ShardCandidate, ShardPart
from harness.records.record import RunRecord
from harness.running.outcome import Description
from harness.running.shared.crew import differing

_DRAWN_BY = (
    "hypothesis",
    "torch",
)  # packages whose versions decide which problems are drawn, or what they hold


def shard_of(name: str, record: RunRecord) -> ShardPart:
    """Return what a record says of its shard. Raises RecordError where it is none, with the record's name."""
    part = record.shard_part
    if part is None:
        raise RecordError(f"{name} is not a shard: it was not made with --shard")
    return part


def description_of(found: ShardCandidate) -> Description:
    """Return what a shard's candidate is. Raises RecordError where that is damaged."""
    described: Description = build_from_json(Description, found.description, "description")
    return described


def refuse_unlike(records: Sequence[tuple[str, RunRecord]]) -> None:
    """Refuse records that are not the shards of one run.

    Args:
        records: with the names that messages call them by.

    Raises:
        RecordError: one is no shard, is there twice, or is of another run.
    """
    (first, record), *others = records
    expected, numbers = _identity(first, record), {shard_of(first, record).number: first}
    for name, other in others:
        found = _identity(name, other)
        for what, value in expected.items():
            if found[what] != value:
                raise RecordError(
                    f"{name} is of another run than {first}: {what} {_words(found[what])}, not {_words(value)}"
                )
        number = shard_of(name, other).number
        if number in numbers:
            raise RecordError(f"{name} and {numbers[number]} are both shard {number}: give each shard once")
        numbers[number] = name
    found_by = [(name, each) for name, one in records for each in shard_of(name, one).found]
    for name, each in found_by:
        first_name, same = next((n, e) for n, e in found_by if e.name == each.name)
        if difference := differing(description_of(each), description_of(same)):
            raise RecordError(f"{name}: {each.name} has other {difference} there than in {first_name}")


def _identity(name: str, record: RunRecord) -> dict[str, Any]:
    """Return what all shards of a run have in common, in words to values."""
    part, environment = shard_of(name, record), record.environment
    return {
        "number of shards": part.of,
        "seed": record.seed,
        "profile": record.profile,
        "version of the harness": record.harness_version,
        "commit": environment.git_commit,
        "candidates": part.candidates or [c.name for c in record.candidates],
        "rules": part.rules,
        "shape": part.shape,
        "--problem-seconds": part.problem_seconds,
        **{f"version of {package}": environment.packages.get(package, "") for package in _DRAWN_BY},
    }


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else f"{value}"

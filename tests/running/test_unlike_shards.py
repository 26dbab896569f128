"""Records that are not the shards of one run are refused, with the field in which they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.records.from_json import RecordError
from harness.records.record import RunRecord
from harness.running import check
from harness.running.shared.asked import AskedSharing
from harness.running.shared.merging import merge_shards
from harness.running.shared.plan import Shard, parse_shard
from harness.verdict import UsageError
from tests.running.conftest import ToldSession
from tests.running.conftest import judged as answer
from tests.running.shared_runs import judged, reread


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., RunRecord]:
    monkeypatch.setattr(check, "open_session", lambda *_, **__: ToldSession(lambda _: answer()))

    def shard(number: int, of: int = 2, **words: Any) -> RunRecord:
        return reread(
            judged(["mine"], ["DECLARED"], AskedSharing(shard=Shard(number, of)), **words), tmp_path
        )

    return shard


def changed(**fields: Any) -> Callable[[RunRecord], None]:
    def change(record: RunRecord) -> None:
        for name, value in fields.items():
            setattr(record, name, value)

    return change


def packages(record: RunRecord) -> None:
    record.environment.packages = {**record.environment.packages, "hypothesis": "6.0"}


def rules(record: RunRecord) -> None:
    record.shard_part = replace(record.shard_part, rules=["DECLARED", "GEMM"])


def limit(record: RunRecord) -> None:
    record.shard_part = replace(record.shard_part, problem_seconds=1.0)


def described(**fields: Any) -> Callable[[RunRecord], None]:
    def change(record: RunRecord) -> None:
        (found,) = record.shard_part.found
        other = replace(found, description={**found.description, **fields})
        record.shard_part = replace(record.shard_part, found=[other])

    return change


DIFFERENCES = [
    (changed(seed=8), "seed 8, not 0"),
    (changed(profile="deep"), "profile deep, not quick"),
    (changed(harness_version="9.9"), "version of the harness 9.9, not "),
    (packages, "version of hypothesis 6.0, not "),
    (rules, "rules DECLARED, GEMM, not DECLARED"),
    (limit, "--problem-seconds 1.0, not 30"),
    (described(fingerprint="abc"), "mine has other bits on fixed operands there than in one.json"),
    (described(stages=["quantize_grouped"]), "mine has other stages there than in one.json"),
]


@pytest.mark.parametrize(("change", "words"), DIFFERENCES, ids=[words for _, words in DIFFERENCES])
def test_shards_of_other_runs_are_refused(change: Callable[[RunRecord], None], words: str, shard) -> None:
    other = shard(2)
    change(other)
    with pytest.raises(RecordError) as raised:
        merge_shards([("one.json", shard(1)), ("two.json", other)])
    assert str(raised.value).startswith("two.json")
    assert words in str(raised.value)


def test_shards_of_another_candidate_and_number_are_refused(shard) -> None:
    other = shard(2)
    other.shard_part = replace(other.shard_part, candidates=["other"])
    with pytest.raises(RecordError, match=r"two is of another run than one: candidates other, not mine"):
        merge_shards([("one", shard(1)), ("two", other)])
    with pytest.raises(RecordError, match=r"number of shards 3, not 2"):
        merge_shards([("one", shard(1)), ("two", shard(2, 3))])


def test_a_shard_that_is_there_twice_is_refused(shard) -> None:
    with pytest.raises(RecordError, match="two and one are both shard 1: give each shard once"):
        merge_shards([("one", shard(1)), ("two", shard(1))])


def test_a_record_that_is_no_shard_is_refused(shard) -> None:
    whole = judged(["mine"], ["DECLARED"])
    with pytest.raises(RecordError, match="whole is not a shard: it was not made with --shard"):
        merge_shards([("one", shard(1)), ("whole", whole)])


@pytest.mark.parametrize(
    "text", ["", "2", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/3", "1 /3", "\u0661/3", "1/99999999"]
)
def test_what_names_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard: expected I/N"):
        parse_shard(text)


def test_a_shard_is_named_as_it_is_written() -> None:
    assert str(parse_shard("2/3")) == "2/3"

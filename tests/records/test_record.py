"""The record: written whole or not at all, read back as it was, and refused with the name of what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.records.from_json import RecordError
from harness.records.merge import merge_records, merge_rules
from harness.records.record import (
    CandidateRun,
    Failure,
    Heatmap,
    Histogram,
    RuleResult,
    RunRecord,
    Skip,
    load_record,
)
from harness.running.conclusion import conclude
from harness.verdict import Verdict


def failure(rule: str = "GEMM") -> Failure:
    return Failure(
        rule, "some:Kernel", "1x1x16x16:1:normal:0", "gemm", "illegal", "gemm = \u00d7", "harness check",
        place={"expert": 0}, extent={"experts": [0]}, heatmap=Heatmap(["0"], ["0-7"], [[3]]),
    )  # fmt: skip


def passed(rule: str = "GEMM", **words: Any) -> RuleResult:
    values: dict[str, Any] = {"examples": 3, "compared": 30, "judged": {"bit equality": 30}, "seconds": 1.0}
    return RuleResult(rule, "a sentence", "some:Kernel", Verdict.PASS, **(values | words))


def failed(rule: str = "GEMM") -> RuleResult:
    result = passed(rule, reason="gemm = 1, legal is 2", worst_ratio=7.0, worst_problem="w")
    result.verdict = Verdict.FAIL
    result.failures.append(failure(rule))
    return result


def record(*rules: RuleResult, **words: Any) -> RunRecord:
    made = RunRecord("run-1", "2026-01-01T00:00:00+00:00", ["harness", "check"], **words)
    made.candidates.append(CandidateRun("some:Kernel", requested=True, ran=True))
    made.rules.extend(rules)
    return made


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    written = record(
        failed(), passed("QUANT", histograms={"quantize.codes": Histogram([0.0], [1, 2])}),
        traps={"nan": 7}, skips=[Skip("GRAPH on some:Kernel", "no GPU")], gsm8k={"solved": 0.97}, seed=3,
        verdict=Verdict.FAIL, environment=record().environment,
    )  # fmt: skip
    written.write(tmp_path / "record.json")
    assert load_record(tmp_path / "record.json") == written
    assert load_record(tmp_path) == written, "the folder stands for the file in it"


def test_a_record_holds_no_number_that_json_has_not() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record(passed(worst_ratio=float("nan"))).to_json()


def test_a_record_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record().write(path)
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        record(passed(worst_ratio=float("inf"))).write(path)
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["record.json"], "no temporary file is left behind"  # noqa: PTH208


def test_a_reader_never_sees_half_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file appears under its name by a rename, with everything in it."""
    seen: list[tuple[str, bool]] = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        seen.append((json.loads(self.read_text())["run_id"], Path(target).exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    record().write(tmp_path / "record.json")
    assert seen == [("run-1", False)]


def test_a_written_record_can_be_read_by_others(tmp_path: Path) -> None:
    """CI uploads it under another user."""
    before = os.umask(0o022)
    try:
        record().write(tmp_path / "record.json")
    finally:
        os.umask(before)
    assert (tmp_path / "record.json").stat().st_mode & 0o777 == 0o644


def damaged(**changes: Any) -> str:
    return json.dumps(json.loads(record(passed()).to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a JSON record"),
        ("[]", "the field 'schema' is missing"),
        ("{}", "the field 'schema' is missing"),
        (damaged(schema=2), "has schema 2, this version of the harness reads up to 1"),
        (damaged(schema="1"), "has schema '1'"),
        (damaged(seed="three"), "record.seed must be int, got 'three'"),
        (damaged(seed=True), "record.seed must be int, got True"),
        (damaged(verdict="MAYBE"), "record.verdict must be one of PASS, FAIL, UNKNOWN, got 'MAYBE'"),
        (damaged(verdict=[]), "record.verdict must be one of PASS, FAIL, UNKNOWN, got []"),
        (damaged(rules={}), "record.rules must be a list, got dict"),
        (damaged(rules=[7]), "record.rules[0] must be an object, got int"),
        (damaged(rules=[{"rule": "GEMM"}]), "record.rules[0].title is missing"),
        (damaged(traps=[]), "record.traps must be an object, got list"),
        (damaged(traps={"nan": "often"}), "record.traps.nan must be int, got 'often'"),
        (damaged(candidates=[{"name": None}]), "record.candidates[0].name must be str, got None"),
    ],
)
def test_a_damaged_record_is_refused_by_the_name_of_the_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        load_record(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_record_and_one_that_is_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        load_record(tmp_path / "nowhere.json")
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="is not a JSON record"):
        load_record(tmp_path)


def test_a_record_of_a_version_that_knows_more_fields_of_the_same_schema_is_read(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(damaged(colour="red"))
    assert load_record(tmp_path).run_id == "run-1"


def test_results_of_the_same_rule_add_up() -> None:
    first = passed(
        histograms={"gemm": Histogram([0.0], [1, 2])}, worst_ratio=0.5, worst_problem="a",
        oracle={"float64": 20}, kernels={"a kernel": 2},
    )  # fmt: skip
    second = passed(
        histograms={"gemm": Histogram([0.0], [10, 20])}, worst_ratio=0.75, worst_problem="b",
        oracle={"float64": 5, "float32": 7}, kernels={"a kernel": 1},
    )  # fmt: skip
    other = passed("QUANT")
    merged = merge_rules([first, second, other])
    assert [(r.rule, r.examples, r.compared) for r in merged] == [("GEMM", 6, 60), ("QUANT", 3, 30)]
    assert merged[0].judged == {"bit equality": 60}
    assert merged[0].oracle == {"float64": 25, "float32": 7}
    assert merged[0].kernels == {"a kernel": 3}
    assert merged[0].histograms["gemm"].counts == [11, 22]
    assert (merged[0].worst_ratio, merged[0].worst_problem) == (0.75, "b")
    assert (first.examples, first.histograms["gemm"].counts) == (3, [1, 2]), "the parts stay as they were"


@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_of_two_results_gives_verdict_and_reason(order: int) -> None:
    cut = passed(reason="3 of 40 problems before the time was over")
    (merged,) = merge_rules([cut, failed()][::order])
    assert merged.verdict is Verdict.FAIL
    assert merged.reason == "gemm = 1, legal is 2"
    assert len(merged.failures) == 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_rule_that_was_judged_anywhere_was_not_skipped(order: int) -> None:
    """A skipped result stands outside the verdict: a failure of another worker must not go with it."""
    skipped = RuleResult("GEMM", "a sentence", "some:Kernel", Verdict.PASS, skipped="no GPU here")
    (merged,) = merge_rules([skipped, failed()][::order])
    assert merged.skipped == ""
    assert merged.verdict is Verdict.FAIL
    assert merged.examples == 3


def test_histograms_with_other_edges_are_not_added() -> None:
    with pytest.raises(ValueError, match="edges must be equal"):
        Histogram([0.0], [1, 2]).add(Histogram([1.0], [1, 2]))


def test_records_of_workers_merge_into_one_run_whose_verdict_is_drawn_again() -> None:
    first = record(passed("QUANT"), traps={"nan": 2}, verdict=Verdict.PASS, seconds=4.0)
    second = record(failed(), traps={"nan": 3, "inf": 1}, seconds=9.0, skips=[Skip("GRAPH on k", "no GPU")])
    third = record(passed("QUANT"), skips=[Skip("GRAPH on k", "no GPU")], errors=["a worker was lost"])
    merged = merge_records([first, second, third])
    conclude(merged, {})
    assert merged.run_id == "run-1"
    assert [(r.rule, r.examples) for r in merged.rules] == [("QUANT", 6), ("GEMM", 3)]
    assert merged.traps == {"inf": 1, "nan": 5}
    assert merged.skips == [Skip("GRAPH on k", "no GPU")]
    assert (merged.seconds, merged.errors) == (9.0, ["a worker was lost"])
    assert merged.verdict is Verdict.FAIL
    assert merged.reason == "1 of 2 rules failed; first: GEMM on some:Kernel"
    assert len(first.rules) == 1, "the parts stay as they were"


def test_a_candidate_that_ran_on_one_worker_ran() -> None:
    first, second = record(), record()
    first.candidates = [CandidateRun("some:Kernel", ran=False, reason="out of memory")]
    assert merge_records([first, second]).candidates == second.candidates
    assert merge_records([second, first]).candidates == second.candidates


def test_merging_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        merge_records([])


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({}, Verdict.PASS, "1 results on some:Kernel: 30 elements compared, all of them legal"),
        ({"rules": []}, Verdict.UNKNOWN, "no rule was judged"),
        ({"interrupted": True}, Verdict.UNKNOWN, "interrupted"),
        ({"errors": ["GEMM on 1x1:\ntrace"]}, Verdict.UNKNOWN, "internal error: GEMM on 1x1:"),
        (
            {"candidates": [CandidateRun("b200", requested=True, reason="needs sm_100")]},
            Verdict.UNKNOWN,
            "b200 cannot run here: needs sm_100",
        ),
        ({"candidates": [CandidateRun("b200", reason="needs sm_100")]}, Verdict.PASS, "all of them legal"),
    ],
)
def test_the_verdict_of_a_run_and_its_reason(change: dict[str, Any], verdict: Verdict, words: str) -> None:
    made = record(passed())
    for name, value in change.items():
        setattr(made, name, getattr(made, name) + value if name == "candidates" else value)
    conclude(made, {})
    assert (made.verdict, words in made.reason) == (verdict, True), made.reason


def test_a_trap_that_was_drawn_too_seldom_fails_a_run_that_found_nothing_wrong() -> None:
    made = record(passed())
    made.traps = {"nan": 5, "inf": 4}
    conclude(made, {"nan": 5, "inf": 5, "zero_row": 5})
    assert made.verdict is Verdict.FAIL
    assert made.missing_traps == ["inf", "zero_row"]
    assert made.reason == "traps drawn too seldom to count as tested: inf, zero_row"

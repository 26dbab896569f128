"""`harness report A B`: what is a regression, what is not, and the two files that say so."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from harness.cli import run
from harness.compare_accuracy import difference_interval
from harness.compare_records import Run, compare, compare_records, newest_pair
from harness.gsm8k.paired import pair_counts
from harness.gsm8k.statistics import wilson
from harness.record import CandidateRun, RecordError, RuleResult, RunRecord, Skip, load_record, parse_record
from harness.record_changes import Direction, Estimate, RecordComparison
from harness.verdict import Verdict
from reports.compare import render
from reports.compare_markdown import code, escape, markdown

RECORDS = Path(__file__).parent / "records"
REGRESSION, IMPROVEMENT, CHANGED, SAME = Direction


def read(name: str) -> RunRecord:
    return load_record(RECORDS / f"{name}.json")


def against(before: RunRecord, after: RunRecord) -> RecordComparison:
    return compare_records(before, after)


def test_a_record_against_itself_has_changed_in_nothing() -> None:
    for path in RECORDS.glob("*.json"):
        record = load_record(path)
        found = against(record, copy.deepcopy(record))
        assert (found.verdicts, found.margins, found.timings, found.environment) == ([], [], [], [])
        assert [a.direction for a in found.accuracies] == [SAME] * len(found.accuracies)
        assert found.verdict is (Verdict.UNKNOWN if path.stem == "unknown" else Verdict.PASS), path.stem


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


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("PASS", "FAIL", REGRESSION),
        ("UNKNOWN", "FAIL", REGRESSION),
        ("PASS", "UNKNOWN", REGRESSION),
        ("FAIL", "PASS", IMPROVEMENT),
        ("UNKNOWN", "PASS", IMPROVEMENT),
        ("FAIL", "UNKNOWN", CHANGED),
    ],
)
def test_where_a_change_of_verdict_leads(before: str, after: str, expected: Direction) -> None:
    found = against(with_rule(before), with_rule(after))
    (change,) = found.verdicts
    assert (change.subject, change.candidate, change.direction) == ("REPEAT", "eager", expected)
    assert (change.before, change.after) == (before, after)
    assert change.reason == f"{after if expected is not IMPROVEMENT else before} here", "of the worse one"
    assert found.verdict is (Verdict.FAIL if expected is REGRESSION else Verdict.PASS)
    assert found.unchanged["rules"] == {"PASS": 2, "SKIPPED": 1}


def test_a_judgement_that_was_lost_is_a_regression_and_one_that_was_not_asked_for_is_none() -> None:
    (skipped,) = against(with_rule("PASS"), with_rule("", skipped="no stage")).verdicts
    assert (skipped.direction, skipped.after, skipped.reason) == (REGRESSION, "SKIPPED", "no stage")
    gone = read("pass")
    gone.skips.append(Skip("REPEAT on eager", "the candidate has no masked_moe"))
    (missing,) = against(with_rule("PASS"), gone).verdicts
    assert (missing.direction, missing.reason) == (REGRESSION, "the candidate has no masked_moe")
    found = against(with_rule("PASS"), read("pass"))
    assert found.verdicts == []
    assert [(o.side, o.subject, o.word) for o in found.one_sided] == [("before", "REPEAT", "PASS")]


@pytest.mark.parametrize(("requested", "expected"), [(True, REGRESSION), (False, CHANGED)])
def test_a_candidate_that_no_longer_runs(requested: bool, expected: Direction) -> None:
    records = read("pass"), read("pass")
    records[0].candidates.append(CandidateRun("mine", requested, True))
    records[1].candidates.append(CandidateRun("mine", requested, False, "needs sm_100"))
    (change,) = against(*records).verdicts
    assert (change.stage, change.candidate, change.direction) == ("candidates", "mine", expected)
    assert change.reason == "needs sm_100"


def test_a_run_that_fails_for_a_reason_of_its_own_is_a_regression() -> None:
    after = read("pass")
    after.verdict, after.reason = Verdict.FAIL, "traps drawn too seldom"
    (change,) = against(read("pass"), after).regressions
    assert (change.subject, getattr(change, "reason", "")) == ("verdict", "traps drawn too seldom")
    assert "verdict" not in [v.subject for v in against(with_rule("PASS"), with_rule("FAIL")).verdicts]


def test_what_fails_in_both_is_listed_and_no_regression() -> None:
    found = against(read("fail"), read("fail"))
    assert [s.subject for s in found.still_bad] == ["QUANT"]
    assert "1 of them still bad" in found.reason
    assert "Still failing" in markdown(found)


def test_a_margin_is_shown_with_its_factor_and_never_judged() -> None:
    found = against(with_rule("PASS", ratio=0.25), with_rule("PASS", ratio=0.75))
    (margin,) = found.margins
    assert (margin.before, margin.after, margin.factor, margin.same_problems) == (0.25, 0.75, 3.0, True)
    assert found.verdict is Verdict.PASS
    assert found.margins_same == 2
    other = with_rule("PASS", ratio=0.75)
    other.seed = 1
    assert not against(with_rule("PASS", ratio=0.25), other).margins[0].same_problems
    other.seed, other.command = 0, [*other.command, "--shapes=qwen3-30b"]
    assert not against(with_rule("PASS", ratio=0.25), other).margins[0].same_problems


def test_illegal_margins_and_those_that_grew_most_come_first() -> None:
    records = []
    for ratios in ((0.1, 0.5, 0.9), (0.9, 0.6, 1.5)):
        record = read("pass")
        for name, ratio in zip("abc", ratios, strict=True):
            record.rules.append(
                RuleResult(name, "", "eager", Verdict.PASS, examples=1, compared=7, worst_ratio=ratio)
            )
        records.append(record)
    assert [m.rule for m in against(*records).margins] == ["c", "a", "b"]


def test_times_are_listed_where_they_changed_by_a_quarter_and_a_second() -> None:
    found = against(with_rule("PASS", seconds=4.0), with_rule("PASS", seconds=9.0, examples=80))
    (timing,) = found.timings
    assert (timing.what, timing.before, timing.after) == ("REPEAT", 4.0, 9.0)
    assert timing.work == "40 problems, now 80 problems"
    assert against(with_rule("PASS", seconds=0.1), with_rule("PASS", seconds=0.9)).timings == []
    assert against(with_rule("PASS", seconds=50.0), with_rule("PASS", seconds=60.0)).timings == []


def test_coverage_is_listed_where_a_rule_compared_half_as_much() -> None:
    after = read("pass")
    after.rules[0].compared //= 3
    (change,) = against(read("pass"), after).coverage
    assert (change.rule, change.after) == (after.rules[0].rule, after.rules[0].compared)


def test_the_environment_names_what_changed() -> None:
    after = read("pass")
    after.environment.packages = {**after.environment.packages, "torch": "9.0", "triton": "4.0"}
    after.environment.gpus, after.environment.driver = ["NVIDIA B200"], "580.1"
    after.candidates[0].measured = {**after.candidates[0].measured, "accumulator": "13 bits"}
    before = read("pass")
    changed = {e.name: (e.before, e.after) for e in against(before, after).environment}
    assert changed.keys() == {"torch", "triton", "GPUs", "driver", "eager, measured: accumulator"}
    assert changed["torch"] == (before.environment.packages["torch"], "9.0")
    assert changed["triton"] == ("", "4.0")


def test_accuracy_is_paired_on_the_questions_that_both_answered() -> None:
    found = against(read("gsm8k_pass"), read("gsm8k_dead"))
    (change,) = found.accuracies
    expected = pair_counts(32, 0, 32, 0.95)
    assert (change.paired, change.questions, change.lost, change.gained) == (True, 32, 32, 0)
    assert (change.low, change.high) == (expected.interval.low, expected.interval.high)
    assert (change.difference, change.p) == (-1.0, expected.p)
    assert [type(c).__name__ for c in found.regressions] == ["VerdictChange", "AccuracyChange"]
    assert [c.direction for c in against(read("gsm8k_dead"), read("gsm8k_pass")).accuracies] == [IMPROVEMENT]


def flipped(lost: int, gained: int, n: int = 1_000) -> tuple[RunRecord, RunRecord]:
    """Two GSM8K runs of n questions; the second loses the first `lost` and gains the last `gained`."""
    records = read("gsm8k_pass"), read("gsm8k_pass")
    for later, record in enumerate(records):
        assert record.gsm8k is not None
        template = record.gsm8k["samples"][0]
        right = [not (i < lost if later else i >= n - gained) for i in range(n)]
        record.gsm8k["samples"] = [
            {
                **template,
                "index": i,
                "question": f"question {i}",
                "strict": ok,
                "class": "right" if ok else "wrong",
            }
            for i, ok in enumerate(right)
        ]
        interval = wilson(sum(right), n)
        record.gsm8k |= {"answered": n, "accuracy_strict": sum(right) / n}
        record.gsm8k["intervals"] = {"strict": [interval.low, interval.high]}
    return records


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    [
        (30, 28, SAME),
        (60, 20, REGRESSION),  # 4 points
        (12, 2, CHANGED),  # worse by one point beyond chance, a drop of two excluded
        (20, 60, IMPROVEMENT),
        (20, 12, SAME),
    ],
)
def test_a_loss_counts_where_chance_does_not_explain_it_and_it_may_exceed_two_points(
    lost: int, gained: int, expected: Direction
) -> None:
    (change,) = against(*flipped(lost, gained)).accuracies
    assert (change.lost, change.gained, change.direction) == (lost, gained, expected)


@pytest.mark.parametrize("how", ["other questions", "no samples"])
def test_accuracies_that_cannot_be_paired_are_compared_by_their_intervals_and_say_why(how: str) -> None:
    before, after = flipped(100, 0)
    assert after.gsm8k is not None
    if how == "no samples":
        after.gsm8k["samples"] = []
    else:
        for sample in after.gsm8k["samples"]:
            sample["question"] += " (other data)"
    (change,) = against(before, after).accuracies
    assert (change.paired, change.direction) == (False, REGRESSION)
    assert change.why_not_paired == (
        "the questions differ: other data"
        if how == "other questions"
        else "the record after holds no questions"
    )
    assert change.why_not_paired in markdown(against(before, after))


def test_the_unpaired_interval_is_newcombes() -> None:
    """The example of Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80 gives 0.0524 to 0.3339."""
    shares = []
    for right, n in ((48, 80), (56, 70)):
        interval = wilson(right, n)
        shares.append(Estimate(right / n, interval.low, interval.high, n))
    found = difference_interval(*shares)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_another_model_on_the_same_task_is_compared_and_two_models_are_kept_apart() -> None:
    before, after = flipped(0, 0)
    assert after.gsm8k is not None
    after.gsm8k["server"] = {"model": "other"}
    (change,) = against(before, after).accuracies
    assert change.candidate == "canary-256/eager → other"
    both = compare([Run("a", before), Run("b", after)], [Run("c", after)])
    assert [a.candidate for a in both.accuracies] == ["other"]
    assert [(o.side, o.candidate) for o in both.one_sided] == [("before", "canary-256/eager")]


def test_a_fault_that_survives_now_is_a_regression() -> None:
    after = read("mutants")
    assert after.mutants is not None
    after.mutants["faults"][0] |= {"status": "survived", "reason": "150 problems"}
    found = against(read("mutants"), after)
    (change,) = found.verdicts
    assert (change.stage, change.before, change.after, change.direction) == (
        "mutants", "killed", "survived", REGRESSION,
    )  # fmt: skip
    assert found.unchanged == {"mutants": {"killed": 1}}


def test_a_canary_control_that_passes_now_is_a_regression() -> None:
    records = []
    for word in ("FAIL", "PASS"):
        record = read("pass")
        record.canary = {
            "questions": 64,
            "runs": [],
            "controls": [{"candidate": "eager+fault", "verdict": word, "reproduce": "harness canary serve"}],
        }
        records.append(record)
    (change,) = against(*records).verdicts
    assert (change.stage, change.direction) == ("canary control", REGRESSION)
    assert "harness canary serve" in render(against(*records))


def test_folders_are_compared_as_a_whole_and_the_newest_of_one_with_the_one_before(tmp_path: Path) -> None:
    before = [Run("check", read("pass")), Run("gsm8k", read("gsm8k_pass"))]
    after = [Run("gsm8k", read("gsm8k_dead")), Run("check", with_rule("FAIL"))]
    found = compare(before, after)
    assert [type(c).__name__ for c in found.regressions] == ["VerdictChange", "AccuracyChange"]
    assert [(o.side, o.subject) for o in found.one_sided] == [("after", "REPEAT")]
    pair = newest_pair([Run("1", read("pass")), Run("2", read("mutants")), Run("3", read("mixed"))])
    assert pair is not None
    assert [run.name for run in pair] == ["1", "3"]
    assert newest_pair([Run("1", read("mutants")), Run("2", read("gsm8k_pass"))]) is None


def test_a_damaged_sample_is_named() -> None:
    before, after = flipped(0, 0)
    assert after.gsm8k is not None
    after.gsm8k["samples"][5]["index"] = "five"
    with pytest.raises(RecordError, match=r"record\.gsm8k\.samples\[5\]\.index must be int, got 'five'"):
        against(before, after)


def test_the_pages_start_with_regressions() -> None:
    records = with_rule("PASS"), with_rule("FAIL")
    records[0].rules[0].verdict = Verdict.FAIL
    found = against(*records)
    for page, heading in ((render(found), '<h2 id="{}-title"'), (markdown(found), "### {}")):
        names = ("regressions", "improvements", "unchanged")
        places = [page.index(heading.format(n if "<" in heading else n.capitalize())) for n in names]
        assert places == sorted(places)
    assert render(found).startswith("<!DOCTYPE html>")
    assert "<title>FAIL: before to after</title>" in render(found)
    json.dumps(asdict(found))


def test_the_page_is_closed_to_the_network_and_well_formed(elements: Callable[[str], Any]) -> None:
    page = render(against(read("pass"), with_rule("FAIL")))
    parsed = elements(page)
    assert parsed.unbalanced == []
    assert "default-src 'none'" in page
    ids = [a["id"] for _, a in parsed.found if "id" in a]
    assert len(ids) == len(set(ids))


def test_hostile_text_shows_as_text(
    hostile: Callable[[Any], Any], is_harmless: Callable[[str], None]
) -> None:
    for names in (("pass", "mixed"), ("gsm8k_pass", "gsm8k_dead"), ("mutants", "mutants"), ("fail", "fail")):
        before, after = (
            parse_record(hostile(json.loads((RECORDS / f"{name}.json").read_text())), name) for name in names
        )
        if after.gsm8k is not None:
            after.gsm8k["metric"] = "strict"
        found = against(before, after)
        assert found.compared
        is_harmless(render(found))
        check_markdown(markdown(found))


def check_markdown(text: str) -> None:
    """Every row has the cells of its head, and nothing of the hostile text is markup."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(cells) == 1, table
    outside = re.sub(r"(`{2,}) .*? \1(?!`)", "", text)
    assert "<script" not in outside
    assert "<img" not in outside
    assert not re.search(r"(?<!\\)\[x\]", outside)
    assert "@everyone" not in outside
    assert "https://" not in outside
    assert [line for line in text.splitlines() if line.startswith("# ")] == []
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", "a_b"),
        ("_a_", r"\_a\_"),
        ("x*y|z", r"x\*y\|z"),
        ("<b> & c", "&lt;b> &amp; c"),
        ("two\nlines", "two lines"),
        ("\u202e", r"\\u202e"),
    ],
)
def test_markdown_takes_text_literally(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_markdown_code_survives_backticks_and_pipes() -> None:
    assert code("harness check") == "`harness check`"
    assert code("a ` b | c") == "`` a ` b \\| c ``"


def write(record: RunRecord, folder: Path) -> Path:
    folder.mkdir(parents=True)
    record.write(folder / "record.json")
    return folder


def test_exit_codes_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(with_rule("PASS"), tmp_path / "good"), write(with_rule("FAIL"), tmp_path / "bad")
    other = write(read("unknown"), tmp_path / "other")
    assert run(["report", str(good), str(bad)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "regression: REPEAT on eager: PASS to FAIL: FAIL here"
    assert out[1].startswith("FAIL: 1 regression, no improvements, 3 verdicts unchanged")
    assert out[2:] == [f"comparison: {bad / 'compare.html'}", f"comparison: {bad / 'compare.md'}"]
    assert (bad / "compare.md").read_text().startswith("## FAIL: 1 regression")
    assert run(["report", str(bad / "record.json"), str(good), "--out", str(tmp_path / "out")]) == 0
    assert "improvement: REPEAT on eager: FAIL to PASS" in capsys.readouterr().out
    assert (tmp_path / "out" / "compare.html").exists()
    assert run(["report", str(good), str(other)]) == 2
    assert run(["report", str(good), str(tmp_path / "nowhere")]) == 64
    assert run(["report", str(good), str(bad), str(other)]) == 64
    assert run(["report"]) == 64
    assert run(["report", str(good), "--history", str(tmp_path)]) == 64


def test_a_folder_alone_compares_its_newest_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = with_rule("PASS"), with_rule("FAIL"), read("mutants")
    for day, record in enumerate(records, start=1):
        record.created = f"2027-01-0{day}T00:00:00+00:00"
        write(record, tmp_path / "runs" / f"{day}")
        (tmp_path / "runs" / f"{day}" / "report.html").write_text("drawn")
    assert run(["report", str(tmp_path / "runs")]) == 2
    assert "is the newest of 3 records, and none before it" in capsys.readouterr().out
    (tmp_path / "runs" / "3" / "record.json").unlink()
    assert run(["report", str(tmp_path / "runs")]) == 1
    page = (tmp_path / "runs" / "compare.html").read_text()
    assert '<a href="1/report.html">1/record.json</a>' in page
    assert '<a href="2/report.html">2/record.json</a>' in page

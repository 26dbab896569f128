"""`harness report A B`: two accuracies, paired on the questions of both or compared by their intervals."""

from __future__ import annotations

import pytest

from harness.comparing.accuracy import difference_interval
from harness.comparing.runs import Run, compare, compare_records
from harness.gsm8k.paired import pair_counts
from harness.gsm8k.statistics import wilson
from harness.records.changes import Direction, Estimate
from harness.records.from_json import RecordError
from harness.records.record import RunRecord
from reports.compare_markdown import markdown
from tests.records.kept_records import read

REGRESSION, IMPROVEMENT, CHANGED, SAME = Direction


def test_accuracy_is_paired_on_the_questions_that_both_answered() -> None:
    found = compare_records(read("gsm8k_pass"), read("gsm8k_dead"))
    (change,) = found.accuracies
    expected = pair_counts(32, 0, 32, 0.95)
    assert (change.paired, change.questions, change.lost, change.gained) == (True, 32, 32, 0)
    assert (change.low, change.high) == (expected.interval.low, expected.interval.high)
    assert (change.difference, change.p) == (-1.0, expected.p)
    assert [type(c).__name__ for c in found.regressions] == ["VerdictChange", "AccuracyChange"]
    assert [c.direction for c in compare_records(read("gsm8k_dead"), read("gsm8k_pass")).accuracies] == [
        IMPROVEMENT
    ]


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
    (change,) = compare_records(*flipped(lost, gained)).accuracies
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
    (change,) = compare_records(before, after).accuracies
    assert (change.paired, change.direction) == (False, REGRESSION)
    assert change.why_not_paired == (
        "the questions differ: other data"
        if how == "other questions"
        else "the record after holds no questions"
    )
    assert change.why_not_paired in markdown(compare_records(before, after))


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
    (change,) = compare_records(before, after).accuracies
    assert change.candidate == "canary-256/eager → other"
    both = compare([Run("a", before), Run("b", after)], [Run("c", after)])
    assert [a.candidate for a in both.accuracies] == ["other"]
    assert [(o.side, o.candidate) for o in both.one_sided] == [("before", "canary-256/eager")]


def test_a_damaged_sample_is_named() -> None:
    before, after = flipped(0, 0)
    assert after.gsm8k is not None
    after.gsm8k["samples"][5]["index"] = "five"
    with pytest.raises(RecordError, match=r"record\.gsm8k\.samples\[5\]\.index must be int, got 'five'"):
        compare_records(before, after)

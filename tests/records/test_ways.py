"""Every way of judging that a rule writes into a record has one of four kinds."""

from __future__ import annotations

import pytest

from harness.records.ways import ANY, FEW, INTERVAL, KINDS, ONE, by_kind, has_interval, kind_of, share
from tests.records.kept_records import RECORDS, read


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("bit equality: 24-bit accumulator (measured), one truncation per 64 products", ONE),
        ("one value, predicted: exact", ONE),
        ("one value, propagated through the stages: real arithmetic, sums by exact", ONE),
        ("one legal scale: real arithmetic", ONE),
        ("equal bit for bit", ONE),
        ("still the sentinel", ONE),
        ("each token once, ranks contiguous", ONE),
        ("two legal codes, tie rule not observable here: real arithmetic", FEW),
        ("with or without fused multiply-add", FEW),
        ("among the largest logits, ties either way", FEW),
        ("derived bound: 24-bit accumulator; float64 oracle itself rounded", INTERVAL),
        ("derived bound, order not known at this shape: blocked", INTERVAL),
        ("bound propagated through the stages: real arithmetic", INTERVAL),
        ("bound of the second GEMM: added in another order", INTERVAL),
        ("interval propagated through the layer", INTERVAL),
        ("scales of a range", INTERVAL),
        ("float32 arithmetic leaves several", INTERVAL),
        ("amax / 448 within float32's rounding", INTERVAL),
        ("softmax within float32's rounding", INTERVAL),
        ("the checkpoint's value within the scales' roundings", INTERVAL),
        ("any code: the stored scale is zero or NaN", ANY),
    ],
)
def test_kinds(way: str, kind: str) -> None:
    assert kind_of(way) == kind


def test_elements_are_counted_by_kind_and_none_is_lost() -> None:
    judged = {
        "one legal code: real": 7,
        "equal": 3,
        "two legal scales: real": 2,
        "any code: zero": 1,
        "bound x": 0,
    }
    assert by_kind(judged) == {ONE: 10, FEW: 2, ANY: 1}
    for file in RECORDS.glob("*.json"):
        for rule in read(file.stem).rules:
            assert sum(by_kind(rule.judged).values()) == sum(rule.judged.values())
            assert set(by_kind(rule.judged)) <= set(KINDS)


def test_an_error_over_its_bound_says_something_where_an_interval_judged() -> None:
    assert not has_interval({"equal bit for bit": 4, "two legal scales: real": 2, "derived bound: x": 0})
    assert has_interval({"equal bit for bit": 4, "derived bound: x": 1})
    assert has_interval({}), "a record that does not say how"


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (1, 1, "100 %"),
        (999_999, 10**6, "over 99.9 %"),
        (1, 10**6, "under 0.1 %"),
        (1, 8, "12.5 %"),
        (0, 0, ""),
    ],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, words: str) -> None:
    assert share(part, whole) == words

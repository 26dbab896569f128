"""Ids that were published stay: published_ids.txt has every one of them, with what became of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.rules import RULE_IDS

FILE = Path(__file__).with_name("published_ids.txt")


def wrong_ids(lines: list[str], rules: tuple[str, ...]) -> list[str]:
    """Return a line for each id that was removed, comes back although it is retired, or is not in the list."""
    entries = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    listed = [name for name, _, _ in entries]
    retired = {name for name, _, words in entries if words.startswith("retired: ")}
    return [
        *(f"{name} is listed twice" for name in dict.fromkeys(listed) if listed.count(name) > 1),
        *(
            f"{name} was published and is gone"
            for name in listed
            if name not in rules and name not in retired
        ),
        *(f"{name} is retired and must not be used again" for name in rules if name in retired),
        *(f"{name} has no line" for name in rules if name not in listed),
    ]


def test_no_published_id_was_removed_renamed_or_used_again() -> None:
    lines = FILE.read_text().splitlines()
    assert len(lines) >= 26
    assert wrong_ids(lines, RULE_IDS) == []


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        (("QUANT",), ["GEMM was published and is gone"]),
        (("QUANT", "MATMUL"), ["GEMM was published and is gone", "MATMUL has no line"]),
        (("QUANT", "GEMM", "OLD"), ["OLD is retired and must not be used again"]),
        (("GEMM", "QUANT"), []),
    ],
)
def test_a_removed_a_renamed_and_a_reused_id_are_seen(rules: tuple[str, ...], found: list[str]) -> None:
    assert wrong_ids(["# words", "QUANT", "GEMM", "OLD retired: it judged nothing"], rules) == found

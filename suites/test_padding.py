"""Padding and old contents of buffers never reach a valid element. The rules are in harness.rules."""

from __future__ import annotations

from collections.abc import Callable

CheckRule = Callable[[str], None]


def test_padding_rows_never_change_valid_rows(check_rule: CheckRule) -> None:
    """PAD-ROWS: rows at or past masked_m never change a valid row."""
    check_rule("PAD-ROWS")


def test_scale_padding_never_changes_valid_rows(check_rule: CheckRule) -> None:
    """PAD-SCALES: padding of the block scales never changes a valid row."""
    check_rule("PAD-SCALES")


def test_every_valid_element_is_written(check_rule: CheckRule) -> None:
    """PAD-OUT: every valid element is written, whatever the buffers held before."""
    check_rule("PAD-OUT")

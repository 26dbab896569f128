"""What may be written, and in which layouts a candidate may be called. The rules are in harness.rules."""

from __future__ import annotations

from collections.abc import Callable

CheckRule = Callable[[str], None]


def test_nothing_is_written_outside_whole_tiles(check_rule: CheckRule) -> None:
    """WRITES: nothing is written outside whole tiles of valid rows."""
    check_rule("WRITES")


def test_no_input_is_changed(check_rule: CheckRule) -> None:
    """INPUTS: no input is changed."""
    check_rule("INPUTS")


def test_an_output_in_another_layout_is_refused_or_right(check_rule: CheckRule) -> None:
    """LAYOUT-OUT: an output in another layout is refused or written right."""
    check_rule("LAYOUT-OUT")


def test_an_operand_in_another_layout_is_refused_or_right(check_rule: CheckRule) -> None:
    """LAYOUT-IN: an input in another layout is refused or read right."""
    check_rule("LAYOUT-IN")


def test_prepared_weights_are_the_same_each_time(check_rule: CheckRule) -> None:
    """PREPARE: prepared weights are the same each time, and each expert's in its own place."""
    check_rule("PREPARE")

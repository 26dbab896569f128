"""Two calls whose outputs must agree. The rules are in harness.rules."""

from __future__ import annotations

from collections.abc import Callable

CheckRule = Callable[[str], None]


def test_the_same_call_gives_the_same_bits(check_rule: CheckRule) -> None:
    """REPEAT: the same call gives the same bits, on reused buffers too."""
    check_rule("REPEAT")


def test_experts_do_not_disturb_each_other(check_rule: CheckRule) -> None:
    """ISOLATION: an expert's data never changes another expert's output."""
    check_rule("ISOLATION")


def test_permuting_experts_permutes_outputs(check_rule: CheckRule) -> None:
    """EXPERTS: permuting experts permutes outputs."""
    check_rule("EXPERTS")


def test_permuting_rows_permutes_outputs(check_rule: CheckRule) -> None:
    """TOKENS: permuting an expert's rows permutes outputs."""
    check_rule("TOKENS")


def test_powers_of_two_move_between_data_and_scale(check_rule: CheckRule) -> None:
    """POW2: a power of two moves from data to scale without changing a bit."""
    check_rule("POW2")


def test_a_larger_capacity_changes_nothing(check_rule: CheckRule) -> None:
    """CAPACITY: a larger capacity changes no valid row."""
    check_rule("CAPACITY")


def test_hints_change_no_value(check_rule: CheckRule) -> None:
    """HINTS: performance hints change no value."""
    check_rule("HINTS")

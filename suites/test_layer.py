"""The whole layer: stages chained, and in one call. The rules are in harness.rules."""

from __future__ import annotations

from collections.abc import Callable

CheckRule = Callable[[str], None]


def test_each_stage_is_legal_on_the_stage_before(check_rule: CheckRule) -> None:
    """PIPELINE: each stage is legal on the candidate's own previous stage."""
    check_rule("PIPELINE")


def test_the_layer_is_legal(check_rule: CheckRule) -> None:
    """MOE: the whole layer is legal, stage by stage or by propagated bound."""
    check_rule("MOE")


def test_a_routed_layer_is_legal(check_rule: CheckRule) -> None:
    """ROUTED: the routed layer is legal: tokens, experts and weights in, tokens out."""
    check_rule("ROUTED")


def test_a_routed_layer_takes_any_number_of_tokens(check_rule: CheckRule) -> None:
    """SLOTS: a routed layer takes no token, one, and one with the same expert twice, which it may refuse."""
    check_rule("SLOTS")

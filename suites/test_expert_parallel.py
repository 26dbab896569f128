"""The stages around the masked MoE, over simulated ranks. The rules are in harness.rules."""

from __future__ import annotations

from collections.abc import Callable

CheckRule = Callable[[str], None]


def test_tokens_go_to_the_right_experts_with_the_right_weights(check_rule: CheckRule) -> None:
    """ROUTE: tokens go to the experts with the largest logits, with softmax weights."""
    check_rule("ROUTE")


def test_every_token_arrives_once_at_each_of_its_experts(check_rule: CheckRule) -> None:
    """DISPATCH: every token arrives once at each of its experts, bytes or legal codes."""
    check_rule("DISPATCH")


def test_outputs_are_weighted_sums_in_slot_order(check_rule: CheckRule) -> None:
    """COMBINE: outputs are the float32 sum of weighted rows in slot order, rounded once."""
    check_rule("COMBINE")


def test_loaded_weights_mean_what_the_checkpoint_means(check_rule: CheckRule) -> None:
    """LOAD: loaded weights and scales mean what the checkpoint means, on every rank."""
    check_rule("LOAD")


def test_several_ranks_give_the_bits_of_one(check_rule: CheckRule) -> None:
    """EP: the layer over several ranks gives the bits of one rank."""
    check_rule("EP")


def test_a_routed_layer_over_several_ranks_is_legal_on_each(check_rule: CheckRule) -> None:
    """SHARDS: a routed layer over several ranks, sharded either way or with experts there twice, is legal on each."""
    check_rule("SHARDS")

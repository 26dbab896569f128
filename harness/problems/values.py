"""Problems of values that a kernel meets seldom, one value each. Imports neither torch nor hypothesis.

A kernel that is right on ordinary numbers may be wrong for an alpha below zero or a gate beyond -88.7. Chance draws each of
these values now and then; the rules that know the right results judge each of them in every run, so that a PASS means it,
besides the problems that a profile asks for.
"""

from __future__ import annotations

from harness.candidates.protocol import Traits
from harness.problems.pool import in_pool
from harness.problems.problem import Drawn, Problem
from harness.problems.traps import IN_ROUTES, TRAPS

SELDOM = (
    "some_nan", "half_nan", "infinities", "large", "small", "gates", "gate_specials", "alpha_negative", "alpha_zero",
    "alpha_subnormal", "alpha_overflow", "zero_scales", "alpha_one", "logits_large", "logits_low", "logits_equal",
    "logits_spread", "topk_zero", "topk_tiny", "topk_ties", "alpha_specials", "nan_scales", "output_specials",
)  # fmt: skip
"""Traps of which every such rule judges a problem of its own, where the candidate's contract has them."""
_ROWS = (9, 24, 0, 17)
_CAPACITY, _WIDTH = 24, 128


def seldom_for(drawn: Drawn, traits: Traits) -> list[frozenset[str]]:
    """Return the traps and options of the problems that a rule judges for their values.

    Args:
        drawn: what may be drawn for the rule.
        traits: the candidate's.
    """
    own = {*drawn.into} & {
        *IN_ROUTES
    }  # of a rule whose problems have no quantized tensors that would be looked at
    names = [name for name in drawn.traps_for(traits) if name in SELDOM]
    found = [frozenset({name}) for name in names if not own or TRAPS[name].into in own]
    overflow = frozenset({"alpha_overflow"})
    if overflow in found:  # the largest number is the output type's own
        found += [overflow | {option} for option in drawn.options_for(traits) if option.endswith("_out")]
    return found


def seldom_problem(extras: frozenset[str], traits: Traits, seed: int) -> Problem:
    """Return the problem with these traps and options."""
    step, rows = traits.width_multiple, traits.m_multiple
    experts = traits.at_most_experts(max(len(_ROWS), traits.min_experts))
    masked_m = (*_ROWS, *(0,) * (experts - len(_ROWS)))[:experts]
    capacity, width = (-(-extent // by) * by for extent, by in ((_CAPACITY, rows), (_WIDTH, step)))
    return in_pool(Problem(experts, capacity, width, width, masked_m, "normal", seed, extras), traits)

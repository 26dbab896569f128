"""The rules: one place for pytest, `conformance`, the command line and the mutants.

A rule is a numbered sentence about a candidate (docs/rules.md) and a function that judges it on one problem. This module
is the list; it imports no torch. The functions are in numbers.py, layer.py, poison.py, memory.py, layout.py,
repeat.py, symmetry.py, sessions.py and preparation.py; about a routed layer in routed.py; about what stands around the kernels in routing.py, dispatch.py, loading.py and parallel.py; about the
arithmetic that was found in declared.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.problems.problem import Drawn
from harness.problems.traps import IN_ROUTES
from harness.verdict import unknown_name

if TYPE_CHECKING:
    from harness.judging.comparison import Comparison
    from harness.judging.context import Context

RuleFunction = Callable[["Context"], "list[Comparison]"]


class NotApplicableError(Exception):
    """The rule says nothing about this candidate, for the given reason; counted as skipped, with the reason."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: its name everywhere.
        title: the sentence, as short as it gets.
        target: "module:function" of its code.
        stages: stages that the candidate must implement.
        share: examples relative to the profile's number; rules that run a stage many times get fewer.
        power: fraction of the problems on which the comparison must have power, else the rule is UNKNOWN. One problem
            without is let pass where another has it.
        drawn: the traps and options that its problems may hold.
        every_row: its comparisons look at every valid row of the problem; one that does not is blind there: UNKNOWN.
        may_refuse: a candidate may raise an error instead of answering; elsewhere a rule that goes on after one hides it.
        knows_values: it compares with the right value, so that the same mistake in every call shows too; the other rules
            compare calls with each other.
        judges_inputs: it judges what a call did to its inputs, not what came out.
        needs_hints: it says something only about a candidate that declares hints.
        unjudged: stages that it calls without judging what comes back (COMBINE: the rows that dispatch sends hold drawn
            numbers instead).
        extents: of a rule about the stages around the layer, those that it knows, so that its problems reach far in them
            (harness.problems.reach.AROUND) and a PASS states no more than they did.
        once: it says the same of every problem, so that it judges one and is not diagnosed from its calls.
    """

    id: str
    title: str
    target: str
    stages: tuple[str, ...]
    share: float = 1.0
    drawn: Drawn = field(default_factory=Drawn)
    power: float = 0.5
    every_row: bool = True
    may_refuse: bool = False
    knows_values: bool = False
    judges_inputs: bool = False
    needs_hints: bool = False
    unjudged: tuple[str, ...] = ()
    extents: tuple[str, ...] = ()
    once: bool = False

    @property
    def reaches(self) -> bool:
        """Whether it judges problems that reach far in every extent that it knows (harness.problems.reach), not in one."""
        return self.share == 1 or bool(self.extents)

    @property
    def judges_values(self) -> bool:
        """Whether it judges a problem of each value that is met seldom (harness.problems.values) and may be drawn for it."""
        return self.share == 1 or bool({*IN_ROUTES} & {*self.drawn.into})

    def function(self) -> RuleFunction:
        """Import and return the rule's code."""
        module, _, name = self.target.partition(":")
        function: RuleFunction = getattr(importlib.import_module(f"harness.rules.{module}"), name)
        return function


_QUANT, _ACT, _GEMM, _MOE = (
    "quantize_grouped",
    "silu_mul_quantize_grouped",
    "masked_grouped_gemm",
    "masked_moe",
)

_FINITE = Drawn(finite=True)
_SENT = ("experts", "capacity", "rows", "tokens", "hidden")

RULES = (
    Rule("DECLARED", "what the contract fixes about the arithmetic holds, or is declared otherwise", "declared:declared", (), 0.1, every_row=False, knows_values=True, once=True),
    Rule("QUANT", "every stored block scale and code is legal for its input", "numbers:quantize", (_QUANT,), drawn=Drawn(into=("quantizer",)), knows_values=True),
    Rule("ACT", "every stored scale and code of bf16(silu(gate) * up) is legal", "numbers:activation", (_ACT,), drawn=Drawn(into=("quantizer", "gate")), knows_values=True),
    Rule("GEMM", "every output is the exact result, or within its derived bound", "numbers:gemm", (_GEMM,), drawn=Drawn(options=("no_alpha", "float32_out", "float16_out"), into=("alpha", "gemm alpha", "weights")), knows_values=True),
    Rule("PIPELINE", "each stage is legal on the candidate's own previous stage", "layer:pipeline", (_QUANT, _GEMM), drawn=Drawn(options=("relu2",), into=("alpha", "weights")), knows_values=True),
    Rule("MOE", "the whole layer is legal, stage by stage or by propagated bound", "layer:moe", (_MOE,), power=0.9, drawn=Drawn(options=("relu2", "prequantized"), into=("alpha", "weights")), knows_values=True),
    Rule("PREPARE", "prepared weights are the same each time, and each expert's in its own place", "preparation:prepared", ("prepare",), 0.3, every_row=False),
    Rule("ROUTED", "the routed layer is legal: tokens, experts and weights in, tokens out", "routed:routed", ("routed_moe",), power=0.75, drawn=Drawn(options=("relu2", "prequantized", "sharded", "redundant"), into=("alpha", "weights", "topk weights")), every_row=False, knows_values=True),
    Rule("SLOTS", "a routed layer takes no token, one, and one with the same expert twice, which it may refuse", "routed:slots", ("routed_moe",), 0.3, Drawn(options=("sharded", "redundant")), every_row=False, may_refuse=True, knows_values=True),
    Rule("PAD-ROWS", "rows at or past masked_m never change a valid row", "poison:padding_rows", (), 0.4),
    Rule("PAD-SCALES", "padding of the block scales never changes a valid row", "poison:padding_scales", (_GEMM,), 0.4),
    Rule("PAD-OUT", "every valid element is written, whatever the buffers held before", "poison:outputs", (), 0.4),
    Rule("WRITES", "nothing is written outside whole tiles of valid rows", "memory:writes", (_GEMM,), 0.4, knows_values=True),
    Rule("INPUTS", "no input is changed", "memory:inputs", (), 0.3, judges_inputs=True),
    Rule("LAYOUT-OUT", "an output in another layout is refused or written right", "layout:output_layout", (_GEMM,), 0.2, may_refuse=True),
    Rule("LAYOUT-IN", "an input in another layout is refused or read right", "layout:input_layout", (), 0.2, may_refuse=True),
    Rule("REPEAT", "the same call gives the same bits, on reused buffers too", "repeat:repeat", (), 0.3, _FINITE),
    Rule("ISOLATION", "an expert's data never changes another expert's output", "symmetry:isolation", (_GEMM,), 0.3, _FINITE, every_row=False),
    Rule("EXPERTS", "permuting experts permutes outputs", "symmetry:expert_permutation", (), 0.3, _FINITE),
    Rule("TOKENS", "permuting an expert's rows permutes outputs", "symmetry:token_permutation", (), 0.3, _FINITE),
    Rule("POW2", "a power of two moves from data to scale without changing a bit", "symmetry:power_of_two", (_QUANT,), 0.3, _FINITE),
    Rule("CAPACITY", "a larger capacity changes no valid row", "symmetry:capacity", (), 0.3, _FINITE),
    Rule("HINTS", "performance hints change no value", "symmetry:hints", (_GEMM,), 0.3, _FINITE, needs_hints=True, knows_values=True),
    Rule("SHAPES", "shapes that follow each other in one process do not disturb each other", "sessions:shapes", (_GEMM,), 0.2, _FINITE, every_row=False, knows_values=True),
    Rule("GRAPH", "a replayed CUDA graph reads the new data and the new masked_m", "sessions:graph_replay", (), 0.2, _FINITE, every_row=False),
    Rule("ROUTE", "tokens go to the experts with the largest logits, with softmax weights", "routing:route", ("route_topk",), 0.4, Drawn(into=("logits",)), every_row=False, knows_values=True, extents=("experts", "tokens")),
    Rule("DISPATCH", "every token arrives once at each of its experts, bytes or legal codes", "dispatch:dispatch", ("dispatch",), 0.3, every_row=False, knows_values=True, extents=_SENT),
    Rule("COMBINE", "outputs are the float32 sum of weighted rows in slot order, rounded once", "routing:combine", ("combine",), 0.4, Drawn(into=("topk weights", "expert outputs")), every_row=False, knows_values=True, unjudged=("dispatch",), extents=_SENT),
    Rule("LOAD", "loaded weights and scales mean what the checkpoint means, on every rank", "loading:load", ("load_experts",), 0.3, every_row=False, may_refuse=True, knows_values=True, extents=("experts", "hidden", "inter")),
    Rule("SHARDS", "a routed layer over several ranks, sharded either way or with experts there twice, is legal on each", "shards:shards", ("routed_moe",), 0.2, every_row=False, knows_values=True, unjudged=("load_experts",)),
    Rule("EP", "the layer over several ranks gives the bits of one rank", "parallel:expert_parallel", ("masked_moe", "dispatch", "combine", "load_experts"), 0.3, every_row=False, extents=(*_SENT, "inter")),
)  # fmt: skip
RULE_IDS = tuple(rule.id for rule in RULES)


def find_rules(names: list[str]) -> list[Rule]:
    """Return the rules with these ids, all of them for an empty list.

    Raises:
        UsageError: no such rule; the message gives the nearest name.
    """
    by_id = {rule.id: rule for rule in RULES}
    for name in names:
        if name.upper() not in by_id:
            raise unknown_name("rule", name, RULE_IDS)
    wanted = {name.upper() for name in names}
    return [rule for rule in RULES if not wanted or rule.id in wanted]

"""Faults that only some rows of the weights have, read off a layer's final output.

A row of w2 is a column of the output: it is the faulty one where the faulty one comes nearer. A row of w1 is a column of
the first GEMM's output (`exchange.py`). A few tokens of an expert tell its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.models import Model
from harness.diagnosis.cases.replay import unharmed
from harness.diagnosis.cases.views import decoded, decoded_weights
from harness.diagnosis.hypotheses.exchange import Exchange, exchange_of
from harness.diagnosis.hypotheses.hypothesis import Hypothesis
from harness.diagnosis.hypotheses.layers import illegal_elements, score_variants
from harness.diagnosis.hypotheses.score import Score
from harness.faults.layer_calls import LoadedMoeCall
from reference.nvfp4 import decode_blocks

_WEIGHTS = ("w1", "w2")
_TOKENS = 12  # rows of an expert that are looked at
_TURNS = 2  # between w1 and w2
_HALF = 0.5  # of the distance of the right output: what one expert must reach for the others to be solved for


def has_weight_rows(hypothesis: Hypothesis) -> bool:
    """Return whether a fault is in the weights and can sit in some of their rows."""
    return hypothesis.fault.unit == "row" and "load_experts" in hypothesis.fault.stages


def score_weight_rows(cases: Sequence[LayerCase], hypothesis: Hypothesis) -> Score | None:
    """Test a fault of the weights that only some of their rows have; None where it cannot be planted or no rows explain much."""

    def variants(case: LayerCase, score: Score) -> list[Tensor] | None:
        found = _weights_with_fault(case, hypothesis)
        if found is None:
            return None
        arguments, score.inside = found
        with unharmed(case.call):
            return [case.model.masked_moe(**arguments).unsqueeze(2)]

    result = Score(hypothesis, illegal_elements(cases, ("output",)), chosen=True)
    return score_variants(result, cases, variants)


def _weights_with_fault(
    case: LayerCase, hypothesis: Hypothesis
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return the layer's arguments with the fault in those rows of the weights that explain what was seen most nearly.

    Returns:
        masked_moe's arguments, and the rows of each weight that has any, `(l, rows)` bool by name; None where no choice of
        rows comes much nearer.

    Raises:
        ReplayError: the fault cannot be planted.
    """
    arguments = dict(case.call.arguments)
    right, wrong = (
        LoadedMoeCall("masked_moe", case.model.masked_moe, case.model, arguments) for _ in range(2)
    )
    with unharmed(case.call):
        hypothesis.fault.apply(wrong, hypothesis.parameters())
    may = [_changed(right, wrong, name) for name in _WEIGHTS]
    chosen = {name: torch.zeros_like(changed) for name, changed in zip(_WEIGHTS, may, strict=True)}
    failing = case.failing.sum(-1)
    for number, expert in enumerate(failing.argsort(descending=True).tolist()):
        if not failing[expert]:
            break
        solver = _Expert.of(case, expert, (right, wrong), (may[0][expert], may[1][expert]))
        left, chosen["w1"][expert], chosen["w2"][expert] = solver.solved()
        if number == 0 and left > _HALF:
            return None
    for name, rows in chosen.items():
        for attribute in (f"{name}_codes", f"{name}_block_scale"):
            kept = torch.where(rows.unsqueeze(-1), getattr(wrong, attribute), getattr(right, attribute))
            setattr(right, attribute, kept)
    return right.arguments(), {name: rows for name, rows in chosen.items() if bool(rows.any())}


def _changed(right: LoadedMoeCall, wrong: LoadedMoeCall, name: str) -> Tensor:
    """Return the rows of a weight that a fault changes, `(l, rows)` bool."""
    codes, scale = f"{name}_codes", f"{name}_block_scale"
    pairs: list[tuple[Tensor, Tensor]] = [(getattr(right, n), getattr(wrong, n)) for n in (codes, scale)]
    return torch.stack([(a != b).any(-1) for a, b in pairs]).any(0)


@dataclass(eq=False)
class _Expert:
    """Some tokens of one expert.

    Attributes:
        exchange: of columns of the first GEMM's output with those of the faulty w1.
        w2: the right and the faulty one, code x block scale, `(k, n)` float32.
        may_second: which rows of w2 the fault changes.
    """

    exchange: Exchange
    w2: tuple[Tensor, Tensor]
    may_second: Tensor

    @classmethod
    def of(
        cls,
        case: LayerCase,
        expert: int,
        calls: tuple[LoadedMoeCall, LoadedMoeCall],
        may: tuple[Tensor, Tensor],
    ) -> _Expert:
        """Take the tokens of an expert that are furthest from what is right."""
        a, model = case.call.arguments, case.model
        change = (case.seen - case.healthy)[expert].flatten(1).float()
        far = change.nan_to_num(0, posinf=0, neginf=0).norm(dim=-1)
        tokens = far.masked_fill(~case.valid[expert], -1).argsort(descending=True)[:_TOKENS]
        tokens = tokens[case.valid[expert][tokens]]
        one = slice(expert, expert + 1)
        values = _first_operand(model, a, expert, tokens)
        alpha = a["w1_alpha"].reshape(-1)[expert]
        weights = [
            [
                decoded_weights(w[one], scale[one])[0]
                for w, scale in ((c.w1, c.w1_blockscale), (c.w2, c.w2_blockscale))
            ]
            for c in calls
        ]
        between = torch.float32 if "gemm1" in model.unrounded else torch.bfloat16
        products = [(model.product(values, w1) * alpha).to(between) for w1, _ in weights]
        exchange = exchange_of(case, expert, tokens, (products[0], products[1]), may[0])
        wanted = exchange.wanted.nan_to_num(0, posinf=0, neginf=0)
        return cls(replace(exchange, wanted=wanted), (weights[0][1], weights[1][1]), may[1])

    def solved(self) -> tuple[float, Tensor, Tensor]:
        """Return how much of the right output's distance is left, and the rows of w1 and of w2, the better of two beginnings."""
        exchange = self.exchange
        none = torch.zeros_like(exchange.may)
        right = exchange.distance(exchange.between(none), self.w2[0])
        solutions = []
        for beginning in (none, exchange.may):
            first = beginning
            for _ in range(_TURNS):
                first = exchange.exchanged(first, self._mixed(self._second(first)))
            second = self._second(first)
            left = exchange.distance(exchange.between(first), self._mixed(second)) / max(right, 1e-30)
            solutions.append((left, first, second))
        return min(solutions, key=lambda solution: solution[0])

    def _mixed(self, second: Tensor) -> Tensor:
        """Return w2 with the chosen rows of the faulty one."""
        return torch.where(second.unsqueeze(-1), self.w2[1], self.w2[0])

    def _second(self, first: Tensor) -> Tensor:
        """Return which rows of w2 are nearer as the faulty ones."""
        exchange = self.exchange
        between = exchange.between(first)
        right, wrong = ((exchange.wanted - between @ w.T).norm(dim=0) for w in self.w2)
        return torch.logical_and(wrong < right, self.may_second)


def _first_operand(model: Model, arguments: dict[str, Any], expert: int, tokens: Tensor) -> Tensor:
    """Return some rows of the first GEMM's left operand, code x block scale, `(tokens, k)` float32."""
    x, x_scale = arguments["hidden_states"]
    if x_scale is not None:
        return decoded(x, x_scale)[expert, tokens]
    scale = arguments["input_global_scale"].reshape(-1)[expert].float()
    return decode_blocks(*model.quantizer(x[expert, tokens], scale.expand(len(tokens))), torch.float32)

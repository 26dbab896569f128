"""Which rows of the weights have a fault, read off the layer's final output.

A row of w2 is a column of the output: it is the faulty one where the faulty one comes nearer. A row of w1 is a column of
the first GEMM's output (`exchange.py`). A few tokens of an expert tell its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.diagnosis.cases.case import Case
from harness.diagnosis.cases.models import Model
from harness.diagnosis.cases.views import decoded_weights
from harness.diagnosis.hypotheses.exchange import Exchange
from harness.diagnosis.hypotheses.hypothesis import Hypothesis, unharmed
from harness.diagnosis.telling.place import numbers
from harness.faults.layer_calls import LoadedMoeCall
from reference.nvfp4 import BLOCK, decode_blocks

WEIGHTS = ("w1", "w2")
_TOKENS = 12  # rows of an expert that are looked at
_TURNS = 2  # between w1 and w2
_HALF = 0.5  # of the distance of the right output: what one expert must reach for the others to be solved for


def has_weight_rows(hypothesis: Hypothesis) -> bool:
    """Return whether a fault is in the weights and can sit in some of their rows."""
    return hypothesis.fault.unit == "row" and "load_experts" in hypothesis.fault.stages


def weights_with_fault(case: Case, hypothesis: Hypothesis) -> tuple[dict[str, Any], str] | None:
    """Return the layer's arguments with the fault in those rows of the weights that explain what was seen most nearly.

    Returns:
        masked_moe's arguments, and the rows in words; None where no choice of rows comes much nearer. Raises Failed where
        the fault cannot be planted.
    """
    arguments = dict(case.call.arguments)
    right, wrong = (
        LoadedMoeCall("masked_moe", case.model.masked_moe, case.model, arguments) for _ in range(2)
    )
    with unharmed(case.call):
        hypothesis.fault.apply(wrong, hypothesis.parameters())
    may = [_changed(right, wrong, name) for name in WEIGHTS]
    chosen = [torch.zeros_like(changed) for changed in may]
    failing = case.illegal.any(-1).any(-1).sum(-1)
    for number, expert in enumerate(failing.argsort(descending=True).tolist()):
        if not failing[expert]:
            break
        solver = _Expert.of(case, expert, (right, wrong), (may[0][expert], may[1][expert]))
        left, first, second = solver.solved()
        if number == 0 and left > _HALF:
            return None
        chosen[0][expert], chosen[1][expert] = first, second
    words = []
    for name, rows in zip(WEIGHTS, chosen, strict=True):
        for attribute in (f"{name}_codes", f"{name}_block_scale"):
            kept = torch.where(rows.unsqueeze(-1), getattr(wrong, attribute), getattr(right, attribute))
            setattr(right, attribute, kept)
        if bool(rows.any()):
            experts, numbered = (rows.any(axis).nonzero().flatten().tolist() for axis in (-1, 0))
            words.append(f"{name}: experts {numbers(experts)}, weight rows {numbers(numbered)}")
    return right.arguments(), "; ".join(words)


def _changed(right: LoadedMoeCall, wrong: LoadedMoeCall, name: str) -> Tensor:
    """Return the rows of a weight that a fault changes, `(l, rows)` bool."""
    codes, scale = f"{name}_codes", f"{name}_block_scale"
    pairs: list[tuple[Tensor, Tensor]] = [(getattr(right, n), getattr(wrong, n)) for n in (codes, scale)]
    return torch.stack([(a != b).any(-1) for a, b in pairs]).any(0)


@dataclass(eq=False)
class _Expert(Exchange):
    """Some tokens of one expert; the other products are those with the faulty w1.

    Attributes:
        w2: the right and the faulty one, code x block scale, `(k, n)` float32.
        may_second: which rows of w2 the fault changes.
    """

    w2: tuple[Tensor, Tensor]
    may_second: Tensor

    @classmethod
    def of(
        cls, case: Case, expert: int, calls: tuple[LoadedMoeCall, LoadedMoeCall], may: tuple[Tensor, Tensor]
    ) -> _Expert:
        """Take the tokens of an expert that are furthest from what is right."""
        a, model = case.call.arguments, case.model
        change = (case.seen - case.healthy)[expert].flatten(1).float()
        far = change.nan_to_num(0, posinf=0, neginf=0).norm(dim=-1)
        tokens = far.masked_fill(~case.valid[expert], -1).argsort(descending=True)[:_TOKENS]
        tokens = tokens[case.valid[expert][tokens]]
        one = slice(expert, expert + 1)
        values = _first_operand(model, a, expert, tokens)
        alpha, last_alpha = (a[name].reshape(-1)[expert] for name in ("w1_alpha", "w2_alpha"))
        weights = [
            [
                decoded_weights(w[one], scale[one])[0]
                for w, scale in ((c.w1, c.w1_blockscale), (c.w2, c.w2_blockscale))
            ]
            for c in calls
        ]
        products = [(model.product(values, w1) * alpha).bfloat16() for w1, _ in weights]
        wanted = (case.seen[expert, tokens].flatten(1).float() / last_alpha).nan_to_num(0, posinf=0, neginf=0)
        return cls(
            model, (products[0], products[1]), a["a2_global_scale"].reshape(-1)[expert].float(), wanted, may[0],
            a.get("activation", "silu") == "silu", (weights[0][1], weights[1][1]), may[1],
        )  # fmt: skip

    def solved(self) -> tuple[float, Tensor, Tensor]:
        """Return how much of the right output's distance is left, and the rows of w1 and of w2, the better of two beginnings."""
        none = torch.zeros_like(self.may)
        right = self.distance(self.between(none), self.w2[0])
        best: tuple[float, Tensor, Tensor] | None = None
        for beginning in (none, self.may):
            first = beginning
            for _ in range(_TURNS):
                first = self.exchanged(first, self._mixed(self._second(first)))
            second = self._second(first)
            left = self.distance(self.between(first), self._mixed(second)) / max(right, 1e-30)
            if best is None or left < best[0]:
                best = left, first, second
        assert best is not None  # noqa: S101 - there are two beginnings
        return best

    def _mixed(self, second: Tensor) -> Tensor:
        """Return w2 with the chosen rows of the faulty one."""
        return torch.where(second.unsqueeze(-1), self.w2[1], self.w2[0])

    def _second(self, first: Tensor) -> Tensor:
        """Return which rows of w2 are nearer as the faulty ones."""
        between = self.between(first)
        right, wrong = ((self.wanted - between @ w.T).norm(dim=0) for w in self.w2)
        return torch.logical_and(wrong < right, self.may_second)


def _first_operand(model: Model, arguments: dict[str, Any], expert: int, tokens: Tensor) -> Tensor:
    """Return some rows of the first GEMM's left operand, code x block scale, `(tokens, k)` float32."""
    x, x_scale = arguments["hidden_states"]
    if x_scale is not None:
        codes = layouts.codes_of(x)
        scales = layouts.block_scales_of(x_scale, codes.shape[1], codes.shape[2] // BLOCK)
        return decode_blocks(codes[expert, tokens], scales[expert, tokens], torch.float32)
    scale = arguments["input_global_scale"].reshape(-1)[expert].float()
    return decode_blocks(*model.quantizer(x[expert, tokens], scale.expand(len(tokens))), torch.float32)

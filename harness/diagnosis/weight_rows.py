"""Which rows of the weights have a fault, read off the layer's final output.

A row of w2 is a column of the output: it is the faulty one where the faulty one comes nearer. A row of w1 is a column of
what is quantized in between, and the output is linear in those blocks: rows are exchanged one after the other, in every
block the one that brings the output nearest to what was seen. A few tokens of an expert tell its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness import physical
from harness.diagnosis.case import Case
from harness.diagnosis.hypotheses import Hypothesis, unharmed
from harness.diagnosis.models import Model
from harness.diagnosis.place import numbers
from harness.diagnosis.views import decoded_weights
from harness.faults.calls import split
from harness.faults.layer_calls import LoadedMoeCall
from reference.nvfp4 import BLOCK, decode_blocks

WEIGHTS = ("w1", "w2")
_TOKENS = 12  # rows of an expert that are looked at
_ROUNDS = 40
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
class _Expert:
    """Some tokens of one expert.

    Attributes:
        model: the right model.
        products: of the tokens with the right and the faulty w1, `(tokens, rows of w1)` bfloat16.
        w2: the right and the faulty one, code x block scale, `(k, n)` float32.
        scale: the encode scale of the second quantization, a scalar.
        wanted: what was seen, over the second alpha, `(tokens, k)` float32.
        may: which rows of w1 and of w2 the fault changes.
        gated: whether w1 holds gate and up rows.
    """

    model: Model
    products: tuple[Tensor, Tensor]
    w2: tuple[Tensor, Tensor]
    scale: Tensor
    wanted: Tensor
    may: tuple[Tensor, Tensor]
    gated: bool

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
            model, (products[0], products[1]), (weights[0][1], weights[1][1]), a["a2_global_scale"].reshape(-1)[expert].float(),
            wanted, may, a.get("activation", "silu") == "silu",
        )  # fmt: skip

    def solved(self) -> tuple[float, Tensor, Tensor]:
        """Return how much of the right output's distance is left, and the rows of w1 and of w2, the better of two beginnings."""
        none = torch.zeros_like(self.may[0])
        right = self._distance(self._between(none), self.w2[0])
        best: tuple[float, Tensor, Tensor] | None = None
        for beginning in (none, self.may[0]):
            first = beginning
            for _ in range(_TURNS):
                second = self._second(first)
                first = self._first(first, torch.where(second.unsqueeze(-1), self.w2[1], self.w2[0]))
            second = self._second(first)
            w2 = torch.where(second.unsqueeze(-1), self.w2[1], self.w2[0])
            left = self._distance(self._between(first), w2) / max(right, 1e-30)
            if best is None or left < best[0]:
                best = left, first, second
        assert best is not None  # noqa: S101 - there are two beginnings
        return best

    def _distance(self, between: Tensor, w2: Tensor) -> float:
        return float((self.wanted - between @ w2.T).norm())

    def _between(self, first: Tensor) -> Tensor:
        """Return what is quantized in between, decoded, `(tokens, n)`."""
        return self._quantized(torch.where(first, self.products[1], self.products[0]))

    def _quantized(self, product: Tensor) -> Tensor:
        hidden = self.model.activated(product) if self.gated else product.relu().square()
        flat = hidden.reshape(-1, hidden.shape[-1])
        codes, block_scale = self.model.quantizer(flat, self.scale.expand(len(flat)))
        values: Tensor = decode_blocks(codes, block_scale, torch.float32).view(hidden.shape)
        return values.nan_to_num(0)

    def _second(self, first: Tensor) -> Tensor:
        """Return which rows of w2 are nearer as the faulty ones."""
        between = self._between(first)
        right, wrong = ((self.wanted - between @ w.T).norm(dim=0) for w in self.w2)
        return torch.logical_and(wrong < right, self.may[1])

    def _first(self, first: Tensor, w2: Tensor) -> Tensor:
        """Exchange rows of w1, in every block what helps most, as long as anything helps."""
        column, rows = self._options(w2.shape[1])
        if not len(column):
            return first
        between = self._between(first)
        left = self._distance(between, w2)
        block = column // BLOCK
        columns = split(w2, BLOCK).transpose(0, 1)  # blocks x k x 16
        gram = columns.transpose(1, 2) @ columns
        for _ in range(_ROUNDS):
            gain = self._gains(first, (column, rows), between, w2, gram)
            best = torch.zeros(between.shape[1] // BLOCK).scatter_reduce(0, block, gain, "amax")
            better = (gain > 0) & (gain == best[block])
            for options in (better, torch.arange(len(gain)) == gain.argmax()):
                flipped = torch.zeros(rows.shape[1], w2.shape[1], dtype=torch.bool)
                for number in range(len(flipped)):
                    flipped[number, column[options & rows[:, number]]] = True
                after = self._between(first ^ flipped.flatten())
                if (distance := self._distance(after, w2)) < left:
                    first, between, left = first ^ flipped.flatten(), after, distance
                    break
            else:
                break
        return first

    def _options(self, n: int) -> tuple[Tensor, Tensor]:
        """Return what may be exchanged at once: columns `(options,)`, and which of their gate and up rows, `(options, 2)`."""
        may = self.may[0].view(-1, n)
        kinds = torch.tensor([[True, False], [False, True], [True, True]] if self.gated else [[True]])
        possible = (may.T.unsqueeze(1) | ~kinds).all(-1)
        column, kind = possible.nonzero().unbind(-1)
        return column, kinds[kind]

    def _gains(
        self, first: Tensor, options: tuple[Tensor, Tensor], between: Tensor, w2: Tensor, gram: Tensor
    ) -> Tensor:
        """Return by how much the squared distance falls when rows of w1 are exchanged, `(options,)`."""
        column, rows = options
        n, block = between.shape[1], column // BLOCK
        now = torch.where(first, self.products[1], self.products[0])
        other = torch.where(first, self.products[0], self.products[1])
        halves = []
        for number in range(rows.shape[1]):
            part = slice(number * n, (number + 1) * n)
            here, there = (split(t[:, part], BLOCK)[:, block] for t in (now, other))
            swapped = (torch.arange(BLOCK) == (column % BLOCK).unsqueeze(-1)) & rows[:, number : number + 1]
            halves.append(torch.where(swapped, there, here))
        change = self._quantized(torch.cat(halves, dim=-1)) - split(between, BLOCK)[:, block]
        missing = split((self.wanted - between @ w2.T) @ w2, BLOCK)[:, block]
        own = torch.einsum("tri,rij,trj->r", change, gram[block], change)
        return 2 * (change * missing).sum(-1).sum(0) - own


def _first_operand(model: Model, arguments: dict[str, Any], expert: int, tokens: Tensor) -> Tensor:
    """Return some rows of the first GEMM's left operand, code x block scale, `(tokens, k)` float32."""
    x, x_scale = arguments["hidden_states"]
    if x_scale is not None:
        codes = physical.codes_of(x)
        scales = physical.block_scales_of(x_scale, codes.shape[1], codes.shape[2] // BLOCK)
        return decode_blocks(codes[expert, tokens], scales[expert, tokens], torch.float32)
    scale = arguments["input_global_scale"].reshape(-1)[expert].float()
    return decode_blocks(*model.quantizer(x[expert, tokens], scale.expand(len(tokens))), torch.float32)

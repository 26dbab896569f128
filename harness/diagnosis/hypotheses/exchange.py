"""Columns of the first GEMM's output exchanged until a layer's output is as near as possible to what was seen.

The output is linear in the blocks of the second quantization, and a column of one block changes nothing but that block: in
every block the exchange that helps most is made, as long as anything helps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.models import Model
from harness.faults.calls import split
from reference.nvfp4 import BLOCK, decode_blocks

_ROUNDS = 40


@dataclass(eq=False)
class Exchange:
    """Some tokens of one expert, with two products each: in the right one, columns are exchanged with the other one's.

    Attributes:
        model: the right model.
        products: of the first GEMM, the right one and the other, `(tokens, columns)`; columns are gate and up.
        scale: the encode scale of the second quantization, a scalar.
        wanted: what was seen, over the second alpha, `(tokens, k)` float32.
        may: which columns may be exchanged, bool.
        gated: whether the columns are gate and up.
    """

    model: Model
    products: tuple[Tensor, Tensor]
    scale: Tensor
    wanted: Tensor
    may: Tensor
    gated: bool

    def distance(self, between: Tensor, w2: Tensor) -> float:
        """Return how far the output stays from what was seen.

        Args:
            between: what `between` returns.
            w2: code x block scale, `(k, n)` float32.
        """
        return float((self.wanted - between @ w2.T).norm())

    def between(self, chosen: Tensor) -> Tensor:
        """Return what is quantized in between with the chosen columns exchanged, decoded, `(tokens, n)` float32."""
        return self.quantized(torch.where(chosen, self.products[1], self.products[0]))

    def quantized(self, product: Tensor) -> Tensor:
        """Return the second quantization of the first GEMM's output `(..., columns)`, decoded, `(..., n)` float32."""
        hidden = self.model.activated(product) if self.gated else product.relu().square()
        flat = hidden.reshape(-1, hidden.shape[-1])
        codes, block_scale = self.model.quantizer(flat, self.scale.expand(len(flat)))
        values: Tensor = decode_blocks(codes, block_scale, torch.float32).view(hidden.shape)
        return values.nan_to_num(0)

    def exchanged(self, chosen: Tensor, w2: Tensor) -> Tensor:
        """Exchange columns, beginning with the chosen ones, as long as anything helps; return the chosen columns.

        Args:
            chosen: `(columns,)` bool.
            w2: code x block scale, `(k, n)` float32.
        """
        column, halves = self._options(w2.shape[1])
        if not len(column):
            return chosen
        between = self.between(chosen)
        left = self.distance(between, w2)
        block = column // BLOCK
        gram = _gram(w2)
        for _ in range(_ROUNDS):
            gain = self._gains(chosen, (column, halves), between, w2, gram)
            best = torch.zeros(between.shape[1] // BLOCK).scatter_reduce(0, block, gain, "amax")
            better = (gain > 0) & (gain == best[block])
            for options in (better, torch.arange(len(gain)) == gain.argmax()):
                flipped = torch.zeros(halves.shape[1], w2.shape[1], dtype=torch.bool)
                for number in range(len(flipped)):
                    flipped[number, column[options & halves[:, number]]] = True
                after = self.between(chosen ^ flipped.flatten())
                if (distance := self.distance(after, w2)) < left:
                    chosen, between, left = chosen ^ flipped.flatten(), after, distance
                    break
            else:
                break
        return chosen

    def gains(self, chosen: Tensor, w2: Tensor) -> Tensor:
        """Return by how much the squared distance falls when single columns are exchanged, or put back.

        Returns:
            `(n, 3)`: of the gate column, of the up column, of both; `(n, 1)` without a gate. All columns must be exchangeable.
        """
        gains = self._gains(chosen, self._options(w2.shape[1]), self.between(chosen), w2, _gram(w2))
        return gains.view(w2.shape[1], -1)

    def _options(self, n: int) -> tuple[Tensor, Tensor]:
        """Return what may be exchanged at once: columns `(options,)`, and which of their gate and up halves, `(options, 2)`."""
        may = self.may.view(-1, n)
        kinds = torch.tensor([[True, False], [False, True], [True, True]] if self.gated else [[True]])
        possible = (may.T.unsqueeze(1) | ~kinds).all(-1)
        column, kind = possible.nonzero().unbind(-1)
        return column, kinds[kind]

    def _gains(
        self, chosen: Tensor, options: tuple[Tensor, Tensor], between: Tensor, w2: Tensor, gram: Tensor
    ) -> Tensor:
        """Return by how much the squared distance falls when columns are exchanged, `(options,)`."""
        column, halves = options
        n, block = between.shape[1], column // BLOCK
        now = torch.where(chosen, self.products[1], self.products[0])
        other = torch.where(chosen, self.products[0], self.products[1])
        parts = []
        for number in range(halves.shape[1]):
            part = slice(number * n, (number + 1) * n)
            here, there = (split(t[:, part], BLOCK)[:, block] for t in (now, other))
            swapped = (torch.arange(BLOCK) == (column % BLOCK).unsqueeze(-1)) & halves[:, number : number + 1]
            parts.append(torch.where(swapped, there, here))
        change = self.quantized(torch.cat(parts, dim=-1)) - split(between, BLOCK)[:, block]
        missing = split((self.wanted - between @ w2.T) @ w2, BLOCK)[:, block]
        own = torch.einsum("tri,rij,trj->r", change, gram[block], change)
        return 2 * (change * missing).sum(-1).sum(0) - own


def exchange_of(
    case: LayerCase, expert: int, tokens: Tensor, products: tuple[Tensor, Tensor], may: Tensor
) -> Exchange:
    """Return the exchange of some rows of an expert of a layer; `wanted` is infinite or NaN where what was seen is."""
    a = case.call.arguments
    scale, alpha = (a[name].reshape(-1)[expert] for name in ("a2_global_scale", "w2_alpha"))
    wanted = case.seen[expert, tokens].flatten(1).float() / alpha
    return Exchange(case.model, products, scale.float(), wanted, may, case.activation == "silu")


def _gram(w2: Tensor) -> Tensor:
    """Return the inner products of the columns of each block of `(k, n)`, `(n / 16, 16, 16)`."""
    columns = split(w2, BLOCK).transpose(0, 1)
    return columns.transpose(1, 2) @ columns

"""Sums along k that a layer is asked for: operands whose sum is what a unit loses, and what masked_moe made of them.

Half of k takes back the other half. The second GEMM's sums are the output. The first one's are seen through the second
quantizer: each stands alone in its block, so that the output shows four significant bits and the exponent, or two
neighbouring values where the quantizer may round either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.identification.activation_pairs import ONE_GATE
from harness.identification.layer_call import ONE, Layer, Nvfp4, identity, picking, powers, set_gates
from harness.identification.summation_probe import Asked
from harness.judging.probe_operands import BOTH_NVFP4
from reference.e2m1 import decode_e2m1
from reference.formats import Coded
from reference.intervals import Interval, quantized_values
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from reference.nvfp4 import BLOCK

ROWS, COLUMNS = 16, 8
_NOT_TAKEN_BACK = 64  # one block of so many


_ALL = (slice(None), slice(None))


@dataclass(frozen=True)
class Sums:
    """What a layer made of sums along k.

    Attributes:
        asked: of which operands.
        accepts: which of some sums, `(*)` float32, the output may come from, given rows and columns where they stand.
    """

    asked: Asked
    accepts: Callable[[Tensor, Any], Tensor]

    def fitting(self, models: Sequence[Summation]) -> list[Summation]:
        """Return the models that explain every output."""
        modes = {model: model.at(self.asked.k) or model for model in models}
        left = self.asked.not_refuted(list(modes.values()), lambda sums: self.accepts(sums, self.asked.few))
        possible = set(left)
        return [model for model, mode in modes.items() if mode in possible and self.fits(mode)]

    def fits(self, model: Summation) -> bool:
        """Return whether a model explains every output."""
        model = model.at(self.asked.k) or model
        return bool(self.accepts(self.asked.sums(model), _ALL).all())


def second_sums(layer: Layer, k: int) -> Sums:
    """Return what the second GEMM makes of k columns of the activation, which the layer hands on from its tokens."""
    hidden = layer.padded(k + BLOCK)
    asked = _asked(k, 0, window=True)
    tokens, w2 = Nvfp4.zeros(1, ROWS, hidden), Nvfp4.zeros(1, hidden, k)
    tokens.codes[0, :, :k], tokens.block_scale[0, :, : k // BLOCK] = asked.a.codes, asked.a.block_scale
    w2.codes[0, :COLUMNS], w2.block_scale[0, :COLUMNS] = asked.b.codes, asked.b.block_scale
    _set_gate(tokens, k)
    out = layer.call(tokens, picking(1, k, hidden, gate_from=k), w2, alpha=torch.tensor((1 / ONE_GATE,)))
    stored = out[0, :, :COLUMNS]
    return Sums(asked, lambda sums, at: sums.bfloat16() == stored[at])


def first_sums(layer: Layer, k: int, rounded: torch.dtype) -> Sums:
    """Return what the first GEMM makes of k columns of tokens, seen through the second quantizer, one sum a block."""
    n = layer.padded(COLUMNS * BLOCK)
    asked = _asked(k, 1)
    tokens, w1 = Nvfp4.zeros(1, ROWS, k), Nvfp4.zeros(1, 2 * n, k)
    tokens.codes[0], tokens.block_scale[0] = asked.a.codes, asked.a.block_scale
    _set_gate(tokens, 0)
    lone = torch.arange(COLUMNS) * BLOCK
    set_gates(w1, lone, 0)
    w1.codes[0, n + lone], w1.block_scale[0, n + lone] = asked.b.codes, asked.b.block_scale
    scale = _encode_scale(asked)
    out = layer.call(tokens, w1, identity(1, k, n), alpha=torch.tensor((1 / ONE_GATE,)), a2_scale=scale)
    stored = out[0, :, lone].double()

    def accepts(sums: Tensor, at: Any) -> Tensor:
        blocks = torch.zeros(sums.numel(), BLOCK, dtype=torch.float64)
        blocks[:, 0] = sums.to(rounded).double().flatten()
        legal = quantized_values(Interval(blocks, blocks), scale[0], Arithmetic())
        low, high = (end[:, 0].view(sums.shape).bfloat16().double() for end in (legal.low, legal.high))
        return (stored[at] >= low) & (stored[at] <= high)

    return Sums(asked, accepts)


def exact_sums(layer: Layer, alpha: float) -> tuple[Tensor, Tensor]:
    """Return sums of the second GEMM that every order adds exactly, `(ROWS, COLUMNS)` float32, and its outputs under an alpha."""
    k = layer.padded(64)
    half, hidden = k // 2, layer.padded(k + BLOCK)
    asked = _asked(k, 0)
    codes = [operand.codes[:, :half] for operand in (asked.a, asked.b)]
    tokens, w2 = Nvfp4.zeros(1, ROWS, hidden), Nvfp4.zeros(1, hidden, k)
    tokens.codes[0, :, :half], w2.codes[0, :COLUMNS, :half] = codes
    _set_gate(tokens, k)
    out = layer.call(
        tokens,
        picking(1, k, hidden, gate_from=k),
        w2,
        alpha=torch.tensor((1 / ONE_GATE,)),
        out_alpha=torch.tensor((alpha,)),
    )
    left, right = (decode_e2m1(each) for each in codes)  # under block scales of 1
    return left @ right.T, out[0, :, :COLUMNS]


def _encode_scale(asked: Asked) -> Tensor:
    """Return a power of two `(1,)` that gives what a unit loses a block scale of about 1."""
    lost = asked.sums(Summation("exact 64")).abs()  # as much as other units lose, and found soonest
    middle = lost[lost > 0].median() if bool((lost > 0).any()) else torch.tensor(6.0)
    return torch.exp2(-torch.frexp(middle / 6)[1].float()).view(1)


def _set_gate(tokens: Nvfp4, at: int) -> None:
    """Set an element of the tokens to 256, which `picking` makes a gate of."""
    tokens.codes[..., at], tokens.block_scale[..., at // BLOCK] = 6, powers(torch.tensor(6))


@cache
def _asked(k: int, first: int, *, window: bool = False) -> Asked:
    """Return the operands of a k: what half of k adds, the other half takes back.

    Of every fourth row a few blocks are not taken back: the sum is a small part of its halves, so that the type of partial
    sums shows. Every other row and column has block scales of about 1, the rest of all exponents. Each block of the rows
    has a code of 6. What is in blocks before `first` is zero. With `window` the last two rows and columns are of one
    instruction: two blocks that take back each other, and a product 2^34 times smaller.
    """
    draw = torch.Generator().manual_seed(k)
    blocks = k // BLOCK
    half = (blocks - first) // 2
    there = first + torch.arange(half)
    # in another order, so that the halves do not lose the same
    back = first + half + torch.randperm(half, generator=draw)

    def drawn(rows: int) -> tuple[Tensor, Tensor]:
        codes = torch.randint(0, 16, (rows, blocks, BLOCK), generator=draw, dtype=torch.uint8)
        near, far = (
            torch.randint(*ends, (rows, blocks), generator=draw, dtype=torch.uint8)
            for ends in ((48, 64), (8, 0x7F))
        )
        scale = torch.where(torch.arange(rows).unsqueeze(1) % 2 == 0, near, far)
        codes[:, :first], codes[:, first + 2 * half :] = 0, 0
        codes[:, back], scale[:, back] = codes[:, there], scale[:, there]
        return codes, scale

    (a, a_scale), (b, b_scale) = drawn(ROWS), drawn(COLUMNS)
    a[:, there, 0] |= 7
    a[:, back] = a[:, there] ^ 8
    some = back[::_NOT_TAKEN_BACK]
    a[3::4, some] ^= 8
    if window:
        for codes, scale in ((a, a_scale), (b, b_scale)):
            codes[-2:], scale[-2:] = 0, ONE
            codes[-2:, 4:6], scale[-2:, 4:6] = 7, 0x7E
            codes[-2:, 6, 1], scale[-2:, 6] = 1, torch.tensor((9, 11), dtype=torch.uint8)
        a[-2:, 5] = 15
        a[-2:, 6, 0] = 7  # where the columns have a zero: the block keeps its scale
    return Asked(Coded(a.flatten(1), a_scale), Coded(b.flatten(1), b_scale), BOTH_NVFP4)

"""A layer of which only masked_moe can be called, with all of its stages but one made transparent.

* Weights pick single elements: their rows hold one code, so that a GEMM's output is one of its inputs.
* Gates are 128: silu(128) is 128, however it is computed, and the activation is 128 * up exactly.
* A block whose largest code is 6 is quantized to itself, under an encode scale that is a power of two.
* The output is code * block scale in bfloat16, which holds it exactly: a block's largest magnitude is 6 block scales.

Powers of two between the stages are in alphas and in block scales of weights.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import traits_of
from harness.identification.activation import Activated, in_allowed_experts, next_bfloat16
from harness.identification.activation_pairs import ONE_GATE
from harness.identification.quantizer_probe import Quantize
from harness.judging.contract import checked
from reference import e2m1, e4m3
from reference.e2m1 import pack_e2m1
from reference.layout import swizzle_128x4
from reference.nvfp4 import BLOCK

ONE = 0x38  # E4M3 byte of 1
_SIX, _FOUR, _UNIT, _HALF = 7, 6, 2, 1  # codes of 6, 4, 1 and 0.5
_EXPONENTS = (-6, 8)  # of normal powers of two in E4M3
_BITS = 10  # of a value that a block's sum can be
_SUM = 7  # a sum of 10 bits in quarters is at least 2^7
_SIXES = 8
_AT_ONCE = 64  # experts, so that weights stay small


@dataclass(frozen=True)
class Nvfp4:
    """Codes `(experts, rows, k)` and block scale bytes `(experts, rows, k / 16)`, both uint8."""

    codes: Tensor
    block_scale: Tensor

    @classmethod
    def zeros(cls, experts: int, rows: int, k: int) -> Nvfp4:
        """Return zeros under block scales of 1."""
        shape = (experts, rows, k)
        return cls(
            torch.zeros(shape, dtype=torch.uint8),
            torch.full((*shape[:2], k // BLOCK), ONE, dtype=torch.uint8),
        )


def powers(exponent: Tensor) -> Tensor:
    """Return the E4M3 bytes of powers of two from 2^-6 to 2^8."""
    return ((exponent.long() + 7) * 8).to(torch.uint8)


class Layer:
    """A candidate's masked_moe, called with SwiGLU.

    Args:
        candidate: that has it.
    """

    def __init__(self, candidate: Any) -> None:
        self.candidate, self.traits = candidate, traits_of(candidate)
        self.width = self.traits.width_multiple

    def padded(self, columns: int) -> int:
        """Return a width that the layer takes, at least so many columns."""
        return -(-columns // self.width) * self.width

    def call(
        self,
        tokens: Tensor | Nvfp4,
        w1: Nvfp4,
        w2: Nvfp4,
        *,
        input_scale: Tensor | None = None,
        alpha: Tensor | None = None,
        a2_scale: Tensor | None = None,
        out_alpha: Tensor | None = None,
    ) -> Tensor:
        """Return the output `(experts, rows, hidden)` bfloat16; scales and alphas `(experts,)` are 1 where not given."""
        experts = len(w1.codes)
        rows = len(tokens.codes[0]) if isinstance(tokens, Nvfp4) else tokens.shape[1]
        device, ones = self.traits.device, torch.ones(experts)
        more = -rows % self.traits.m_multiple

        def to_device(x: Tensor | None) -> Tensor:
            return (ones if x is None else x.float()).to(device, copy=True)  # none is another's

        def with_more_rows(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0, 0, more)).to(device, copy=True)

        if isinstance(tokens, Nvfp4):
            codes, block_scale = with_more_rows(tokens.codes), with_more_rows(tokens.block_scale)
            hidden: tuple[Tensor, Tensor | None] = layouts.operand(codes), layouts.scales(block_scale)
        else:
            hidden = with_more_rows(tokens), None
        out = self.candidate.masked_moe(
            hidden_states=hidden,
            input_global_scale=None if hidden[1] is not None else to_device(input_scale),
            w1=pack_e2m1(w1.codes).to(device),
            w1_blockscale=swizzle_128x4(w1.block_scale).view(torch.float8_e4m3fn).to(device),
            w1_alpha=to_device(alpha),
            w2=pack_e2m1(w2.codes).to(device),
            a2_global_scale=to_device(a2_scale),
            w2_blockscale=swizzle_128x4(w2.block_scale).view(torch.float8_e4m3fn).to(device),
            w2_alpha=to_device(out_alpha),
            masked_m=torch.full((experts,), rows, dtype=torch.int32, device=device),
            activation="silu",
        )
        shape = (experts, rows + more, w2.codes.shape[1])
        return checked(out, "masked_moe", "", shape, torch.bfloat16, device)[:, :rows].cpu()

    def activation(self, alpha: float = 1.0) -> Activated:
        """Return what the layer makes of alpha times gate and up: codes and block scales of its second quantizer.

        Gate and up come from quantized tokens, a block for each, and are exact up to 10 bits and 2^-16 of the largest of
        an expert.
        """
        call = partial(self._activated, mantissa=alpha)
        return in_allowed_experts(call, self.traits, _AT_ONCE)

    def _activated(self, gate_up: Tensor, global_scale_enc: Tensor, mantissa: float) -> tuple[Tensor, Tensor]:
        experts, rows, both = gate_up.shape
        live, n = both // 2, self.padded(both // 2)
        gate, up = gate_up[..., :live], gate_up[..., live:]
        if bool((gate == gate[:, :1, :1]).all()):
            gate = gate[..., :1]  # one block will do
        gates = gate.shape[2]
        values = torch.cat((gate, up), -1)
        count = gates + live  # values of a row, each of which has a block of k
        k = self.padded(count * BLOCK)
        shift = _shifts(gate, up)
        of_value = torch.cat((shift[:, :1].expand(-1, gates), shift[:, 1:].expand(-1, live)), 1)
        tokens, weights = Nvfp4.zeros(experts, rows, k), Nvfp4.zeros(experts, 2 * n, k)
        codes, exponents = _as_sums(values.double(), of_value.unsqueeze(1))
        tokens.codes[..., : count * BLOCK] = codes.flatten(2)
        tokens.block_scale[..., :count] = powers(exponents)
        each = torch.arange(live)
        row = torch.cat((each, n + each))
        block = torch.cat((each.clamp(max=gates - 1), gates + each))
        weights.codes[:, row.unsqueeze(1), block.unsqueeze(1) * BLOCK + torch.arange(BLOCK)] = _sum_weights()
        alpha = shift.amin(1) - _EXPONENTS[0]
        weights.block_scale[:, row, block] = powers(of_value[:, block] - alpha.unsqueeze(1))
        out = self.call(
            tokens,
            weights,
            identity(experts, k, n),
            alpha=torch.exp2(alpha) * mantissa,
            a2_scale=global_scale_enc,
        )
        return read(out[..., :live])

    def quantizer(self) -> Quantize:
        """Return the quantizer of the tokens, for finite x with block scales that are normal in E4M3.

        The sign of a zero and the block scale of a block of zeros are not seen.
        """

        def quantize(x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
            del masked_m
            flat = x.flatten(1)
            rows = flat.view(len(x), -1, BLOCK)
            codes, scales = in_allowed_experts(self._quantized, self.traits, _AT_ONCE)(rows, global_scale_enc)
            codes, scales = (
                codes.flatten(1)[:, : flat.shape[1]],
                scales.flatten(1)[:, : flat.shape[1] // BLOCK],
            )
            return codes.reshape(x.shape), scales.reshape(*x.shape[:-1], -1)

        return quantize

    def _quantized(self, x: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer makes of a block of tokens; another block, a constant, is the gate: 4 under a block scale of 2^6."""
        experts, rows, _ = x.shape
        n = self.padded(BLOCK)
        k = self.padded(n + BLOCK)
        tokens = torch.zeros(experts, rows, k, dtype=torch.bfloat16)
        tokens[..., :BLOCK] = x
        unit = (64 / global_scale_enc).double()
        tokens[..., n : n + 2] = next_bfloat16(6 * unit).bfloat16().view(-1, 1, 1)
        tokens[..., n + 2] = (4 * unit).bfloat16().view(-1, 1)
        weights = picking(experts, n, k, gate_from=n + 2)
        out = self.call(
            tokens,
            weights,
            identity(experts, k, n),
            input_scale=global_scale_enc,
            alpha=torch.full((experts,), 1 / ONE_GATE),
        )
        return read(out[..., :BLOCK])


def picking(experts: int, n: int, k: int, gate_from: int) -> Nvfp4:
    """Return w1 `(2n, k)` for tokens whose element `gate_from` is 256: gates are 2^14, ups the first n elements.

    With an alpha of 1 / 128 gates are 128, and the activation is the elements.
    """
    weights = Nvfp4.zeros(experts, 2 * n, k)
    each = torch.arange(n)
    set_gates(weights, each, gate_from)
    weights.codes[:, n + each, each] = _UNIT
    return weights


def set_gates(weights: Nvfp4, rows: Tensor, gate_from: int) -> None:
    """Make some rows of w1 pick an element of the tokens 2^6 times."""
    weights.codes[:, rows, gate_from] = _UNIT
    weights.block_scale[:, rows, gate_from // BLOCK] = powers(torch.tensor(6))


def identity(experts: int, hidden: int, n: int) -> Nvfp4:
    """Return w2 `(hidden, n)`, whose first rows are the identity."""
    weights = Nvfp4.zeros(experts, hidden, n)
    each = torch.arange(min(hidden, n))
    weights.codes[:, each, each] = _UNIT
    return weights


def read(out: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and block scale bytes of outputs `(experts, rows, n)`, products of both; 255 where they are none."""
    blocks = out.double().view(*out.shape[:-1], -1, BLOCK)
    scale = blocks.abs().amax(-1) / e2m1.MAX
    byte = e4m3.encode_e4m3(scale.float())
    stored = e4m3.decode_e4m3(byte).double()
    magnitude = blocks.abs() / torch.where(stored == 0, 1, stored).unsqueeze(-1)
    codes = e2m1.round_to_code(magnitude)
    exact = e2m1.decode_e2m1(codes).double() == magnitude
    codes = torch.where(exact, codes | (blocks.signbit().to(torch.uint8) << 3), 255)
    return codes.flatten(-2), byte.masked_fill(stored != scale, 255)


def _shifts(gate: Tensor, up: Tensor) -> Tensor:
    """Return exponents `(experts, 2)` that gates and ups are divided by, so that their largest is in a block's range."""
    largest = torch.stack([x.abs().double().amax((1, 2)) for x in (gate, up)], 1)
    shift = torch.frexp(largest.clamp(min=2.0**-126))[1].double() - 1 - _SUM - _EXPONENTS[1]
    apart = _EXPONENTS[1] - _EXPONENTS[0]  # that block scales of the weights can be
    return shift.maximum(shift.amax(1, keepdim=True) - apart)


def _as_sums(values: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return values as blocks of codes whose products with `_sum_weights` add up to them.

    Args:
        values: `(experts, rows, n)` float64.
        shift: exponents that they are divided by, of the same shape or broadcastable.

    Returns:
        Codes `(experts, rows, n, 16)` uint8 and exponents of block scales `(experts, rows, n)`.
    """
    magnitude = torch.ldexp(values.abs(), -shift.int())
    exponent = (torch.frexp(magnitude)[1] - 1 - _SUM).clamp(*_EXPONENTS)
    quarters = (torch.ldexp(magnitude, 2 - exponent)).round().long()
    codes = _sum_table()[quarters]
    negative = (values < 0).unsqueeze(-1) & (codes != 0)
    return codes | (negative.to(torch.uint8) << 3), exponent


def _sum_weights() -> Tensor:
    """Return the codes of a block of weights: eight of 6, then 1 and 0.5."""
    codes = torch.zeros(BLOCK, dtype=torch.uint8)
    codes[:_SIXES], codes[_SIXES], codes[_SIXES + 1] = _SIX, _UNIT, _HALF
    return codes


@cache
def _sum_table() -> Tensor:
    """Return for each number of quarters below 2^10 the codes `(16,)` whose products with `_sum_weights` add up to it."""
    magnitudes = torch.tensor(e2m1.MAGNITUDES)
    rest = torch.arange(1 << _BITS) / 4
    table = torch.zeros(1 << _BITS, BLOCK, dtype=torch.uint8)
    for digit in range(_SIXES):  # the largest that fits, again and again
        codes = torch.searchsorted(6 * magnitudes, rest, right=True) - 1
        table[:, digit] = codes
        rest -= 6 * magnitudes[codes]
    small = torch.zeros(int(4 * rest.max()) + 1, 2, dtype=torch.uint8)
    for one, half in itertools.product(range(5), range(5)):
        quarters = int(4 * e2m1.MAGNITUDES[one] + 2 * e2m1.MAGNITUDES[half])
        if quarters < len(small):
            small[quarters] = torch.tensor((one, half))
    table[:, _SIXES : _SIXES + 2] = small[(4 * rest).long()]
    return table

"""Which block scales and which codes a quantizer may store: the adjudicator.

A kernel computes in float32, partly with reciprocals that are free by one unit in the last place, so next to a rounding
boundary two scales or two codes are right. The scale is judged first; codes are judged given the scale that the
candidate stored, so that a legal choice of scale loosens nothing.

    real    scale = e4m3(gs * amax / 6),  code = e2m1(x * gs / scale): real numbers, each rounded once
    exact   scale = e4m3(amax * (gs * fl(1/6))),  enc = fl(1 / (scale * fl(1 / gs))): float32, correctly rounded
    fast    scale = e4m3(gs * (amax * rcp(6))),  enc = rcp(scale * rcp(gs)): every rcp one unit up or down, or known from
            a probe of the device
    both    code = e2m1(fl(x * enc)); a block without amax gets scale 0 and enc 0. So does, since FlashInfer 0.7.4, one whose
            scale rounds to 0; before, its codes saturated. Under a scale of 0 every code is legal

All steps are monotone in each reciprocal, so the legal scales are those between two bytes and the legal codes those
between two codes. Inputs may themselves be intervals (an activation that was not observed).

Rules: QUANT-1 (scale), QUANT-2 (codes), QUANT-3 (zero, NaN and infinity). Derivation: docs/bounds.md.
Source: FlashInfer csrc/nv_internal/tensorrt_llm/kernels/quantization_utils.cuh:430-512.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference import e2m1, e4m3

Reciprocal = Callable[[Tensor], Tensor]
KINDS = ("real", "exact", "fast")
_SMALLEST_NORMAL = 2.0**-126
_SMALLEST_NORMAL_BYTE = 8  # of E4M3


@dataclass(frozen=True)
class Arithmetic:
    """How the candidate computes scales and codes.

    Attributes:
        kind: "real", "exact" or "fast".
        reciprocal: float32 to float32, the device's own rcp.approx.ftz, bit for bit, from a probe; None where it is not
            known. Only for "fast": with it there is one legal scale and one legal code.
        keeps_subnormals: whether a scale below E4M3's smallest normal number must be stored; else zero is legal as well.
    """

    kind: str = "fast"
    reciprocal: Reciprocal | None = None
    keeps_subnormals: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Arithmetic: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def describe(self) -> str:
        """Return the model in words, as the record shows it."""
        if self.kind != "fast":
            return f"{self.kind} arithmetic"
        return (
            "fast arithmetic, reciprocals probed"
            if self.reciprocal
            else "fast arithmetic, reciprocals free by 1 unit"
        )


@dataclass(frozen=True)
class Range:
    """A set of legal bytes or codes: everything from `low` to `high`, both uint8 of the same shape."""

    low: Tensor
    high: Tensor

    def accepts(self, stored: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return which stored values lie in the range; with `rows`, `stored` holds only that slice of the first axis."""
        return (stored >= self.low[rows]) & (stored <= self.high[rows])

    def ambiguous(self) -> Tensor:
        """Return where more than one value is legal, so that a tie rule cannot be observed."""
        return self.low != self.high


def legal_scales(
    amax_low: Tensor, amax_high: Tensor, global_scale_enc: Tensor, arithmetic: Arithmetic
) -> Range:
    """Return the legal block scale bytes.

    Args:
        amax_low: `(*, blocks)` float32, the block's largest magnitude, NaN elements not counted (NaN for a block of
            nothing but NaN); the smallest that it may be.
        amax_high: the largest that it may be; the same tensor where the input is known.
        global_scale_enc: `()` or broadcastable float32.
        arithmetic: how the candidate computes.

    Returns:
        Range of `(*, blocks)` uint8.

    Rules: QUANT-1, QUANT-3.
    """
    legal = _stored_scales(amax_low, amax_high, global_scale_enc, arithmetic)
    if arithmetic.keeps_subnormals:
        return legal
    return Range(legal.low.masked_fill(legal.low < _SMALLEST_NORMAL_BYTE, 0), legal.high)


def _stored_scales(
    amax_low: Tensor, amax_high: Tensor, global_scale_enc: Tensor, arithmetic: Arithmetic
) -> Range:
    if arithmetic.kind == "real":
        low, high = (a.double() * global_scale_enc.double() / e2m1.MAX for a in (amax_low, amax_high))
        return Range(e4m3.round_to_byte(low), e4m3.round_to_byte(high))
    sixth = torch.full((), 6.0, device=amax_low.device)
    if arithmetic.kind == "exact":
        factor = global_scale_enc * sixth.reciprocal()
        return Range(e4m3.encode_e4m3(amax_low * factor), e4m3.encode_e4m3(amax_high * factor))
    few, many = _reciprocals(sixth, sixth, arithmetic)
    return Range(
        e4m3.encode_e4m3(global_scale_enc * _flushed(amax_low * few)),
        e4m3.encode_e4m3(global_scale_enc * (amax_high * many)),
    )


def legal_codes(
    low: Tensor, high: Tensor, stored_scale: Tensor, global_scale_enc: Tensor, arithmetic: Arithmetic
) -> Range:
    """Return the legal codes of magnitudes, given the block scale that the candidate stored.

    Args:
        low: `(*, blocks, 16)` float32, smallest magnitude that the element may have; no NaN.
        high: the largest; the same tensor where the input is known.
        stored_scale: `(*, blocks)` uint8, the candidate's own scale bytes.
        global_scale_enc: `()` or broadcastable to the blocks, float32.
        arithmetic: how the candidate computes.

    Returns:
        Range of `(*, blocks, 16)` uint8 from 0 to 7: codes without their sign. Blocks whose stored scale is zero or NaN
        accept every code: they decode to zero or NaN whatever the codes are.

    Rules: QUANT-2, QUANT-3.
    """
    scale = e4m3.decode_e4m3(stored_scale)
    if arithmetic.kind == "real":
        divisor = scale.double().unsqueeze(-1)
        gs = global_scale_enc.double()
        gs = gs.unsqueeze(-1) if gs.ndim else gs
        range_ = [
            e2m1.round_to_code(m.double() * gs / divisor) for m in ((low,) if low is high else (low, high))
        ]
    else:
        enc_low, enc_high = encode_factors(scale, global_scale_enc, arithmetic)
        range_ = [e2m1.round_to_code(low * enc_low.unsqueeze(-1))]
        if low is not high or enc_low is not enc_high:
            range_.append(e2m1.round_to_code(high * enc_high.unsqueeze(-1)))
    free = ((scale == 0) | scale.isnan()).unsqueeze(-1)
    if not bool(free.any()):
        return Range(range_[0], range_[-1])
    return Range(range_[0].masked_fill(free, 0), range_[-1].masked_fill(free, 7))


def encode_factors(scale: Tensor, global_scale_enc: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest factor by which the kernel may multiply the elements of a block.

    Args:
        scale: `(*, blocks)` float32, decoded block scale.
        global_scale_enc: float32, broadcastable.
        arithmetic: "exact" or "fast".

    Returns:
        Two `(*, blocks)` float32 tensors; the same object twice where there is one legal factor.
    """
    if arithmetic.kind == "exact":
        largest = torch.finfo(torch.float32).max
        enc = (scale * global_scale_enc.reciprocal()).reciprocal().clamp(max=largest)
        return enc, enc
    dec_low, dec_high = _reciprocals(global_scale_enc, global_scale_enc, arithmetic)
    if arithmetic.reciprocal is not None:
        enc = arithmetic.reciprocal(_flushed(scale * dec_low))
        return enc, enc
    return _reciprocals(scale * dec_high, _flushed(scale * dec_low), arithmetic)


def _reciprocals(largest: Tensor, smallest: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Return the smallest value of rcp(largest) and the largest value of rcp(smallest)."""
    if arithmetic.reciprocal is not None:
        return arithmetic.reciprocal(largest), arithmetic.reciprocal(smallest)
    zero, infinity = torch.zeros_like(largest), torch.full_like(smallest, torch.inf)
    low = torch.nextafter(largest.reciprocal(), zero)
    return _flushed(low), torch.nextafter(smallest.reciprocal(), infinity)


def _flushed(x: Tensor) -> Tensor:
    """Return x with subnormals set to zero, which .ftz arithmetic may do: the smaller end of an interval."""
    return torch.where(x.abs() < _SMALLEST_NORMAL, torch.zeros_like(x), x)

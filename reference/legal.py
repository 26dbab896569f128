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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference import e2m1, e4m3
from reference.quantizer_formulas import CODES, SCALES, Reciprocal, needs_rcp
from reference.rounding import CODE_ROUNDINGS, SCALE_ROUNDINGS, TO_EVEN

KINDS = ("real", "exact", "fast")
_SMALLEST_NORMAL = 2.0**-126
_SMALLEST_NORMAL_BYTE = 8  # of E4M3
_FAR = 2.0**100  # past it, or below its reciprocal, a float32 step of a formula may overflow or be flushed


@dataclass(frozen=True)
class Arithmetic:
    """How the candidate computes scales and codes.

    Attributes:
        kind: "real", "exact" or "fast".
        reciprocal: float32 to float32, the device's own rcp.approx.ftz, bit for bit, from a probe; None where it is not
            known. Only for "fast": with it there is one legal scale and one legal code.
        keeps_subnormals: whether a scale below E4M3's smallest normal number must be stored; else zero is legal as well.
        scales: formulas of reference.quantizer_formulas that were found to give its block scales; one value is legal
            wherever they agree. Empty: `kind` says what is legal.
        codes: the same for its codes.
        scale_rounding: how a block scale is rounded to E4M3, a key of SCALE_ROUNDINGS.
        ties: how a code is rounded to E2M1, a key of CODE_ROUNDINGS.
    """

    kind: str = "fast"
    reciprocal: Reciprocal | None = None
    keeps_subnormals: bool = True
    scales: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    scale_rounding: str = TO_EVEN
    ties: str = TO_EVEN

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Arithmetic: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        unknown = [
            f
            for known, given in ((SCALES, self.scales), (CODES, self.codes))
            for f in given
            if f not in known
        ]
        unknown += [f for f in (*self.scales, *self.codes) if not self.computes(f)]
        if unknown:
            raise ValueError(f"Arithmetic: formulas must be known, and their rcp as well, got {unknown[0]!r}")

    def computes(self, formula: str) -> bool:
        """Return whether what a formula gives is known: every step of it, or the device's reciprocal too."""
        return self.reciprocal is not None or not needs_rcp(formula)

    def describe(self) -> str:
        """Return the model in words, as the record shows it."""
        if self.kind != "fast":
            return f"{self.kind} arithmetic"
        return (
            "fast arithmetic, reciprocals probed"
            if self.reciprocal
            else "fast arithmetic, reciprocals free by 1 unit"
        )

    def describe_scales(self) -> str:
        """Return how block scales are computed, in words."""
        return " or ".join(self.scales) or self.describe()

    def describe_codes(self) -> str:
        """Return how codes are computed, in words."""
        return " or ".join(self.codes) or self.describe()


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
    to_byte = SCALE_ROUNDINGS[arithmetic.scale_rounding]
    if arithmetic.scales:
        found = [
            Range(to_byte(low), to_byte(low) if high is low else to_byte(high))
            for low, high in (
                _scales(name, amax_low, amax_high, global_scale_enc, arithmetic) for name in arithmetic.scales
            )
        ]
        far = _far(amax_low) | _far(amax_high) | _far(global_scale_enc)
        by_kind = replace(arithmetic, scales=(), codes=())
        return _union(found, far, lambda: _stored_scales(amax_low, amax_high, global_scale_enc, by_kind))
    if arithmetic.kind == "real":
        low, high = (a.double() * global_scale_enc.double() / e2m1.MAX for a in (amax_low, amax_high))
        return Range(to_byte(low), to_byte(high))
    sixth = torch.full((), 6.0, device=amax_low.device)
    if arithmetic.kind == "exact":
        factor = global_scale_enc * sixth.reciprocal()
        return Range(to_byte(amax_low * factor), to_byte(amax_high * factor))
    few, many = _reciprocals(sixth, sixth, arithmetic)
    return Range(
        to_byte(global_scale_enc * _flushed(amax_low * few)),
        to_byte(global_scale_enc * (amax_high * many)),
    )


def _scales(
    name: str, amax_low: Tensor, amax_high: Tensor, gs: Tensor, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Return the unrounded block scales of a formula, the same object twice where the input is known."""
    formula, rcp = SCALES[name], arithmetic.reciprocal or torch.reciprocal
    low = formula(amax_low, gs, rcp)
    return low, low if amax_high is amax_low else formula(amax_high, gs, rcp)


def _far(x: Tensor) -> Tensor:
    """Return where a magnitude, not 0, is so near an end of float32 that formulas may overflow or be flushed."""
    magnitude = x.abs()
    return (magnitude != 0) & ~((magnitude > 1 / _FAR) & (magnitude < _FAR))


def _union(found: list[Range], far: Tensor, by_kind: Callable[[], Range]) -> Range:
    """Return everything between the ends of some ranges, and where `far` what the kind of arithmetic allows as well."""
    low, high = found[0].low, found[0].high
    for more in found[1:]:
        low, high = torch.minimum(low, more.low), torch.maximum(high, more.high)
    if bool(far.any()):
        wide = by_kind()
        low = torch.where(far, torch.minimum(low, wide.low), low)
        high = torch.where(far, torch.maximum(high, wide.high), high)
    return Range(low, high)


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
    to_code = CODE_ROUNDINGS[arithmetic.ties]
    if arithmetic.codes:
        return _found_codes(low, high, stored_scale, global_scale_enc, arithmetic)
    if arithmetic.kind == "real":
        divisor = scale.double().unsqueeze(-1)
        gs = global_scale_enc.double()
        gs = gs.unsqueeze(-1) if gs.ndim else gs
        range_ = [to_code(m.double() * gs / divisor) for m in ((low,) if low is high else (low, high))]
    else:
        enc_low, enc_high = encode_factors(scale, global_scale_enc, arithmetic)
        range_ = [to_code(low * enc_low.unsqueeze(-1))]
        if low is not high or enc_low is not enc_high:
            range_.append(to_code(high * enc_high.unsqueeze(-1)))
    return _with_free(Range(range_[0], range_[-1]), scale)


def _with_free(legal: Range, scale: Tensor) -> Range:
    """Return the legal codes with every one of them where the block scale decodes to zero or NaN."""
    free = ((scale == 0) | scale.isnan()).unsqueeze(-1)
    if not bool(free.any()):
        return legal
    return Range(legal.low.masked_fill(free, 0), legal.high.masked_fill(free, 7))


def _found_codes(
    low: Tensor, high: Tensor, stored_scale: Tensor, global_scale_enc: Tensor, arithmetic: Arithmetic
) -> Range:
    """Return the codes of the formulas that were found; arguments as those of `legal_codes`."""
    scale = e4m3.decode_e4m3(stored_scale)
    gs = global_scale_enc.unsqueeze(-1) if global_scale_enc.ndim else global_scale_enc
    to_code, rcp = CODE_ROUNDINGS[arithmetic.ties], arithmetic.reciprocal or torch.reciprocal
    found = []
    for name in arithmetic.codes:
        of_low = to_code(CODES[name](low, scale.unsqueeze(-1), gs, rcp))
        of_high = of_low if high is low else to_code(CODES[name](high, scale.unsqueeze(-1), gs, rcp))
        found.append(Range(of_low, of_high))
    by_kind = replace(arithmetic, scales=(), codes=())
    far = _far(low) | _far(high) | _far(gs)
    legal = _union(found, far, lambda: legal_codes(low, high, stored_scale, global_scale_enc, by_kind))
    return _with_free(legal, scale)


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

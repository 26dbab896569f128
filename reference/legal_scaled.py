"""Which scales and which elements a quantizer of MX formats or FP8 may store.

    E8M0 scales    a power of two: one legal byte, and one code given the byte that was stored, since x / scale is exact
    float32        amax / 448 as kernels compute it, up to two float32 roundings; elements given the scale that was stored, up
                   to an approximate division and two roundings (reference.fp8_tokens)
    4 over 6       E4M3 of amax * gs / 6 or of amax * gs / 4; codes given the one that was stored, as float32 arithmetic may
                   round them
    fp8            x * global_scale_enc, as far off as a product or a division by the reciprocal can be

A block of zeros may have any scale: its elements are zeros. A block that is not finite has a NaN scale in an MX format, and
then any elements.

Rules: NVFP4-5, MXFP4-1, MXFP4-2, MXFP4-3, MX-1, FP8-1, FP8-2, FP8-3. Source: OCP Microscaling Formats (MX) v1.0, 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference import e4m3, e8m0
from reference.formats import Format
from reference.fp8_tokens import AMAX_FLOOR, SCALE_FREEDOM, VALUE_FREEDOM

_SMALLEST = 2.0**-149  # a subnormal scale is off by a step of float32


@dataclass(frozen=True)
class Ends:
    """A range of each value, float64 tensors of one shape, or one of several ranges."""

    low: Tensor
    high: Tensor
    others: tuple[Ends, ...] = ()

    def hold(self, values: Tensor, part: slice = slice(None)) -> Tensor:
        """Return which values lie in one of the ranges; `part` says which rows they are."""
        inside = (values >= self.low[part]) & (values <= self.high[part])
        for other in self.others:
            inside |= other.hold(values, part)
        return inside


def in_blocks(form: Format, values: Tensor) -> Tensor:
    """Return `(*, k)` as `(*, blocks, block)`: one block a row where a row has one scale."""
    return values.reshape(*values.shape[:-1], -1, form.block or values.shape[-1])


def legal_scales(
    form: Format, amax_low: Tensor, amax_high: Tensor, global_scale_enc: Tensor | None = None
) -> Ends:
    """Return the decoded scales that are legal for blocks or rows whose largest magnitude lies in a range.

    Args:
        form: an MX format, or FP8 with float32 scales.
        amax_low: `(*)` float32 or float64.
        amax_high: likewise; NaN for a block that is not finite.
        global_scale_enc: float32 that broadcasts, of a format whose E4M3 scales are encoded with it.

    Returns:
        Ends of `(*)`; NaN where only a NaN scale is legal, from 0 to infinity where any scale is.
    """
    low, high = amax_low.double(), amax_high.double()
    if form.divisors:
        assert global_scale_enc is not None  # noqa: S101 - an encoded format
        found = [
            Ends(
                _e4m3(low * global_scale_enc.double() / by, -1),
                _e4m3(high * global_scale_enc.double() / by, 1),
            )
            for by in form.divisors
        ]
        return Ends(found[0].low, found[0].high, tuple(found[1:]))
    if form.scale == "ue8m0":
        ends = [e8m0.decode_e8m0(form.power_of_two(end)).double() for end in (low, high)]
    else:
        floor = float(torch.tensor(AMAX_FLOOR, dtype=torch.float32)) if form.scale else 0.0
        ends = [
            end.clamp(min=floor) / e4m3.MAX * (1 + sign * SCALE_FREEDOM) + sign * _SMALLEST
            for end, sign in ((low, -1), (high, 1))
        ]
    zeros = high == 0
    any_high = torch.where(zeros, torch.inf, ends[1])
    return Ends(torch.where(zeros, 0.0, ends[0]), any_high.masked_fill(high.isnan(), torch.nan))


def _e4m3(scale: Tensor, sign: int) -> Tensor:
    """Return the decoded E4M3 scale of a real one, at one end of what float32 arithmetic makes of it."""
    return e4m3.decode_e4m3(e4m3.round_to_byte(scale * (1 + sign * VALUE_FREEDOM))).double()


def legal_elements(form: Format, low: Tensor, high: Tensor, scale: Tensor) -> Ends:
    """Return the legal magnitudes of elements, given the scale that was stored.

    Args:
        form: the same.
        low: `(*, k)` smallest magnitude that was quantized.
        high: `(*, k)` largest.
        scale: `(*, k)` or broadcastable, float64, what elements are multiplied with: decoded, positive.

    Returns:
        Ends of `(*, k)`, decoded elements.
    """
    freedom = 0.0 if form.scale == "ue8m0" else VALUE_FREEDOM
    ends = [
        form.elements(form.encode(end.double() / scale * (1 + sign * freedom)), torch.float64)
        for end, sign in ((low, -1), (high, 1))
    ]
    return Ends(ends[0], ends[1])

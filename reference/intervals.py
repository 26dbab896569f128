"""Ranges of values through a quantizer: the hull of all that legal scales and legal codes can give. Rule: MOE-2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference import e2m1, e4m3
from reference.formats import Format
from reference.legal import Arithmetic, legal_codes, legal_scales
from reference.legal_scaled import in_blocks, legal_elements
from reference.legal_scaled import legal_scales as legal_scales_of
from reference.nvfp4 import BLOCK


@dataclass(frozen=True)
class Interval:
    """A range of each element: float64 tensors of one shape, low <= high.

    Attributes:
        low: the smallest that it may be.
        high: the largest.
        scale: of a quantized operand `(rows, k / 16)` float32, the block scales, where each is certain; else NaN.
    """

    low: Tensor
    high: Tensor
    scale: Tensor | None = None

    def split(self, counts: list[int]) -> list[Interval]:
        """Return so many rows after one another."""
        scale = [None] * len(counts) if self.scale is None else torch.split(self.scale, counts)
        ends = torch.split(self.low, counts), torch.split(self.high, counts)
        return [Interval(low, high, part) for low, high, part in zip(*ends, scale, strict=True)]

    def certain(self) -> Tensor:
        """Return which rows are known exactly, with their scales, and hold no NaN."""
        rows = (self.low == self.high).all(-1)
        return rows if self.scale is None else rows & ~self.scale.isnan().any(-1)

    def anything(self) -> Tensor:
        """Return which elements may be anything, NaN too: what infinite and finite values can make of each other."""
        return (self.low == -torch.inf) & (self.high == torch.inf)

    def center(self) -> Tensor:
        """Return the middle."""
        return (self.low + self.high) / 2

    def radius(self) -> Tensor:
        """Return half of the width."""
        return torch.where(self.low == self.high, 0.0, (self.high - self.low) / 2)  # infinite ends too


def quantized_values(x: Interval, global_scale_enc: Tensor, arithmetic: Arithmetic) -> Interval:
    """Return the hull of all legal code x block scale values.

    Args:
        x: `(rows, k)`, values of the quantizer's input type.
        global_scale_enc: `()` or, for each row its own, `(rows, 1)` float32.
        arithmetic: how the candidate computes.

    Returns:
        Interval of `(rows, k)`, without the global scale.
    """
    is_nan, crosses = x.low.isnan() | x.high.isnan(), (x.low < 0) & (x.high > 0)
    large = torch.maximum(x.low.abs(), x.high.abs()).float().masked_fill(is_nan, 0)
    small = large  # the same tensor: codes are then asked for once
    if x.low is not x.high:
        small = torch.where(crosses, 0.0, torch.minimum(x.low.abs(), x.high.abs()))
        small = small.float().masked_fill(is_nan, 0)
    shape = (*small.shape[:-1], small.shape[-1] // BLOCK, BLOCK)
    large_blocks = large.view(shape)
    small_blocks = large_blocks if small is large else small.view(shape)
    all_nan = is_nan.view(shape).all(-1)
    amax_low, amax_high = (m.amax(-1).masked_fill(all_nan, torch.nan) for m in (small_blocks, large_blocks))
    scales = legal_scales(amax_low, amax_high, global_scale_enc, arithmetic)
    low, high = _magnitudes(small_blocks, large_blocks, scales.low, global_scale_enc, arithmetic)
    byte = scales.low.clone()
    high = high.clone() if high is low else high
    while len(rows := (byte < scales.high).any(-1).nonzero().flatten()):  # few rows have many legal scales
        byte[rows] = torch.minimum(byte[rows] + 1, scales.high[rows])
        gs = global_scale_enc[rows] if global_scale_enc.ndim else global_scale_enc
        more = _magnitudes(small_blocks[rows], large_blocks[rows], byte[rows], gs, arithmetic)
        low[rows], high[rows] = torch.minimum(low[rows], more[0]), torch.maximum(high[rows], more[1])
    low, high = low.view(small.shape), high.view(small.shape)
    if bool(is_nan.any()):  # stored as +6, whatever the scale
        six = [
            e4m3.decode_e4m3(b).double().repeat_interleave(BLOCK, -1) * e2m1.MAX
            for b in (scales.low, scales.high)
        ]
        low, high = torch.where(is_nan, six[0], low), torch.where(is_nan, six[1], high)
    negative = x.high <= 0
    both = torch.where(crosses, -high, torch.where(negative, -high, low))
    scale = e4m3.decode_e4m3(scales.low).masked_fill(scales.ambiguous(), torch.nan)
    return Interval(both, torch.where(crosses, high, torch.where(negative, -low, high)), scale)


def scaled_values(form: Format, x: Interval, global_scale_enc: Tensor) -> Interval:
    """Return the hull of all values that legal scales and elements of an MX format or FP8 can give.

    Args:
        form: the format.
        x: `(rows, k)`, values of the quantizer's input type.
        global_scale_enc: `(rows, 1)` float32, of a format with a scale of each expert, which stays in the values.

    Returns:
        Interval of `(rows, k)`, factors of the rows included.
    """
    is_nan = x.low.isnan() | x.high.isnan()
    crosses = (x.low < 0) & (x.high > 0)
    small = torch.where(crosses, 0.0, torch.minimum(x.low.abs(), x.high.abs())).masked_fill(is_nan, 0)
    large = torch.maximum(x.low.abs(), x.high.abs()).masked_fill(is_nan, 0)
    if form.encoded and not form.scale:
        ends = legal_elements(form, small, large, 1 / global_scale_enc.double())
        low, high = ends.low, ends.high
    else:
        low, high = _scaled_magnitudes(form, small, large, is_nan, global_scale_enc)
    negative = x.high <= 0
    both = torch.where(crosses, -high, torch.where(negative, -high, low))
    return Interval(both, torch.where(crosses, high, torch.where(negative, -low, high)))


def _scaled_magnitudes(
    form: Format, small: Tensor, large: Tensor, is_nan: Tensor, global_scale_enc: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest stored magnitude, `(rows, k)`, under every legal choice of scales."""
    encode = global_scale_enc.double() if form.encoded else torch.ones_like(small[:, :1])
    blocks = [in_blocks(form, m) for m in (small, large)]
    bad = in_blocks(form, is_nan).any(-1) | blocks[1].amax(-1).isinf()
    low, high = (m.amax(-1).masked_fill(bad, torch.nan) for m in blocks)
    legal = legal_scales_of(form, low, high, encode)
    lows, highs = [], []
    for ends in (legal, *legal.others):
        least, most = (
            torch.where(end.isinf(), 1.0, end).repeat_interleave(blocks[0].shape[-1], -1)
            for end in (ends.low, ends.high)
        )
        # Where the smallest scale is zero the next one, E4M3's smallest, may be taken all the same.
        positive = torch.where(least > 0, least, torch.where(most > 0, most.clamp(max=2.0**-9), 1.0))
        smallest, largest = positive / encode, torch.where(most > 0, most, 1.0) / encode
        lows.append(legal_elements(form, small, large, largest).low * least)
        highs.append(legal_elements(form, small, large, smallest).high * most)
    return torch.stack(lows).amin(0), torch.stack(highs).amax(0)


def _magnitudes(
    small: Tensor, large: Tensor, byte: Tensor, gs: Tensor, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest stored magnitude under one choice of block scales."""
    codes = legal_codes(small, large, byte, gs, arithmetic)
    scale = e4m3.decode_e4m3(byte).double().unsqueeze(-1)
    low = e2m1.decode_e2m1(codes.low).double() * scale
    return low, low if codes.high is codes.low else e2m1.decode_e2m1(codes.high).double() * scale

"""Mistakes that a kernel could make of LogFMT, each a function of rows that are encoded right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from reference.logfmt import CHANNELS, LogFmt, encode_logfmt


def _of_next_block(rows: LogFmt) -> LogFmt:
    span = (rows.log_high - rows.log_low).roll(-1, -1)
    return replace(rows, log_high=rows.log_low + span)


def _towards_zero(rows: LogFmt) -> LogFmt:
    """Round the logarithm down instead of taking the nearest value."""
    step = ((rows.log_high - rows.log_low) / 510).repeat_interleave(CHANNELS, -1)
    position = (rows.plain.double().abs().log2() - rows.log_low.repeat_interleave(CHANNELS, -1)) / step
    codes = position.nan_to_num(0, posinf=0, neginf=-1).add(1 + 1e-3).floor().clamp(0, 511).long()
    return replace(rows, codes=codes)


def _nearest_logarithm(rows: LogFmt) -> LogFmt:
    """Put thresholds in the middle of logarithms: right but for a little above the middle of two values."""
    step = ((rows.log_high - rows.log_low) / 510).repeat_interleave(CHANNELS, -1)
    position = (rows.plain.double().abs().log2() - rows.log_low.repeat_interleave(CHANNELS, -1)) / step
    codes = position.nan_to_num(0, posinf=0, neginf=-1).add(1.5).floor().clamp(0, 511).long()
    return replace(rows, codes=codes)


def _of_64_channels(rows: LogFmt) -> LogFmt:
    """Take the extremes of the first half of the block."""
    half = rows.plain.unflatten(-1, (-1, 2, CHANNELS // 2))[..., :1, :].expand(*rows.coded.shape, 2, -1)
    other = encode_logfmt(half.flatten(-3))
    return replace(rows, log_low=other.log_low, log_high=other.log_high)


def _without_clip(rows: LogFmt) -> LogFmt:
    """Span whatever there is, 126 octaves where there is a zero."""
    size = rows.plain.double().abs().unflatten(-1, (-1, CHANNELS)).amin(-1)
    low = torch.where(rows.coded, size.clamp(min=2.0**-126).log2(), rows.log_low)
    step = (rows.log_high - low) / 510
    each = step.repeat_interleave(CHANNELS, -1)
    position = (rows.plain.double().abs().log2() - low.repeat_interleave(CHANNELS, -1)) / each + 1.5
    codes = position.nan_to_num(0, posinf=0, neginf=0).floor().clamp(0, 511).long()
    return replace(rows, log_low=low, codes=codes)


def _coded_whatever_its_size(rows: LogFmt) -> LogFmt:
    return replace(rows, coded=torch.ones_like(rows.coded))


def _each_block_for_itself(rows: LogFmt) -> LogFmt:
    """Code a block whose chunk is not coded."""
    size = rows.plain.double().abs().unflatten(-1, (-1, CHANNELS))
    return replace(rows, coded=(size.amax(-1) < 1) & (size.amin(-1) < size.amax(-1)))


WRONG: Mapping[str, Callable[[LogFmt], LogFmt]] = {
    "step of next block": _of_next_block,
    "rounded towards zero": _towards_zero,
    "nearest logarithm": _nearest_logarithm,
    "sign lost": lambda rows: replace(rows, negative=torch.zeros_like(rows.negative)),
    "code off by one": lambda rows: replace(rows, codes=(rows.codes + 1).clamp(max=511)),
    "no code for zero": lambda rows: replace(rows, codes=rows.codes.clamp(min=1)),
    "signs of next block": lambda rows: replace(rows, negative=rows.negative.roll(CHANNELS, -1)),
    "extremes of 64 channels": _of_64_channels,
    "range not clipped": _without_clip,
    "large rows coded": _coded_whatever_its_size,
    "each block for itself": _each_block_for_itself,
    "never coded": lambda rows: replace(rows, coded=torch.zeros_like(rows.coded)),
    "512 levels": lambda rows: replace(
        rows, log_high=rows.log_low + (rows.log_high - rows.log_low) * 510 / 511
    ),
}

"""LogFMT-10 as DeepEP's low-latency combine sends the experts' rows: a sign and nine bits of a logarithm, by 128 channels.

    value(0) = 0,    value(c) = amin * 2^((c - 1) * step),    step = log2(amax / amin) / 510,    c = 1, ..., 511

amax and amin are the largest and the smallest magnitude of the 128 channels, amin at least amax * 2^-32. A magnitude gets
the nearest value: thresholds are the middles of two neighbours, and below value(1), of it and value(1) / 2^step. A chunk
of 1,024 channels (512 where the width is no multiple) is coded only if amin < amax < 1 in each of its blocks; else the whole
chunk travels as it is. NaN counts for neither extreme and gets code 0.

Rules: LOGFMT-1 (values and codes), LOGFMT-2 (what is coded), LOGFMT-3 (what a computed code may decode to).
Source: DeepEP csrc/kernels/internode_ll.cu, logfmt_encode and decode_and_accumulate (its documentation says 64 channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS = 128  # channels that share amax and amin
MOST_CODE = 511
CLIP = 32.0  # octaves that a block's codes span at most
_STEPS = MOST_CODE - 1
_CHUNKS = (1024, 512)
_LOG2_ERROR = 2.0**-22  # PTX ISA, lg2.approx.f32: absolute in (0.5, 2), elsewhere relative
_EXP2_ERROR = 2.0**-22  # PTX ISA, ex2.approx.f32: relative


@dataclass(frozen=True)
class LogFmt:
    """Rows in this format.

    Attributes:
        codes: `(*, k)` int64 in [0, 511].
        negative: `(*, k)` bool.
        log_low, log_high: `(*, k / 128)` float64, log2 of amin and amax.
        coded: `(*, k / 128)` bool: the block's codes travel; else `plain` does.
        plain: `(*, k)`, the rows.
    """

    codes: Tensor
    negative: Tensor
    log_low: Tensor
    log_high: Tensor
    coded: Tensor
    plain: Tensor


def chunk_of(width: int) -> int:
    """Return how many channels are coded together or not at all; all of them where no kernel has the width."""
    return next((chunk for chunk in _CHUNKS if width % chunk == 0), width)


def encode_logfmt(x: Tensor) -> LogFmt:
    """Encode rows, every step in float64.

    Args:
        x: `(*, k)` bfloat16, k a multiple of 128.

    Raises:
        ValueError: k is not a multiple of 128.

    Rules: LOGFMT-1, LOGFMT-2.
    """
    log_low, log_high, coded = _extremes(x)
    codes = _code(_position(x, log_low, log_high))
    return LogFmt(codes, x.signbit(), log_low, log_high, coded, x)


def decode_logfmt(rows: LogFmt) -> Tensor:
    """Return what arrives, `(*, k)` float32.

    Rule: LOGFMT-1.
    """
    value = _value(rows.codes, rows.log_low, rows.log_high)
    value = torch.where(rows.negative, -value, value)
    return torch.where(_each(rows.coded), value, rows.plain.double()).float()


def legal_logfmt(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest number that each element may arrive as, `(*, k)` float64.

    They differ by what float32 and the approximate log2 and exp2 may lose (docs/bounds.md), and by a step where an element
    lies so close to a threshold that either code may be computed. What is not coded arrives as it is.

    Args:
        x: `(*, k)` bfloat16, k a multiple of 128.

    Rule: LOGFMT-3.
    """
    log_low, log_high, coded = _extremes(x)
    span = log_high - log_low
    largest = torch.maximum(log_low.abs(), log_high.abs()).clamp(min=1) + 2
    of_logarithm = _LOG2_ERROR * largest
    of_code = (12 * of_logarithm + span * 2.0**-21) / (span / _STEPS)
    of_value = math.log(2) * (8 * of_logarithm + span * 2.0**-23) + _EXP2_ERROR
    position = _position(x, log_low, log_high)
    least, most = (
        _value(_code(position + sign * _each(of_code)), log_low, log_high) * (1 + sign * _each(of_value))
        for sign in (-1, 1)
    )
    negative, coded = x.signbit(), _each(coded)
    low, high = torch.where(negative, -most, least), torch.where(negative, -least, most)
    return torch.where(coded, low, x.double()), torch.where(coded, high, x.double())


def _extremes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log2 of amin and amax of every block, and which blocks are coded; [-1, 0] where they have no logarithms."""
    if x.ndim == 0 or x.shape[-1] % CHANNELS:
        raise ValueError(f"logfmt: the last extent must be a multiple of {CHANNELS}, got {tuple(x.shape)}")
    size = in_blocks(x.double().abs())
    amax = size.masked_fill(size.isnan(), 0).amax(-1)
    amin = torch.maximum(size.masked_fill(size.isnan(), torch.inf).amin(-1), amax * 2.0**-CLIP)
    usable = (amax < 1) & (amin < amax)
    blocks = chunk_of(x.shape[-1]) // CHANNELS
    in_chunks = usable.reshape(*usable.shape[:-1], usable.shape[-1] // blocks, blocks)
    coded = in_chunks.all(-1).repeat_interleave(blocks, -1)
    log_low = torch.where(usable, amin, 0.5).log2()
    return log_low, torch.where(usable, amax, 1.0).log2(), coded


def in_blocks(of_channels: Tensor) -> Tensor:
    """Return `(*, k)` as `(*, k / 128, 128)`."""
    return of_channels.reshape(*of_channels.shape[:-1], of_channels.shape[-1] // CHANNELS, CHANNELS)


def _each(of_blocks: Tensor) -> Tensor:
    return of_blocks.repeat_interleave(CHANNELS, -1)


def _position(x: Tensor, log_low: Tensor, log_high: Tensor) -> Tensor:
    """Return the code of every element before it is rounded down: whole numbers are thresholds."""
    step = (log_high - log_low) / _STEPS
    middle = ((1 + step.exp2()) / 2).log2() / step  # of two neighbours, in steps above the lower one
    return (x.double().abs().log2() - _each(log_low)) / _each(step) + 2 - _each(middle)


def _code(position: Tensor) -> Tensor:
    return position.nan_to_num(0.0, posinf=MOST_CODE, neginf=0.0).floor().clamp(0, MOST_CODE).long()


def _value(codes: Tensor, log_low: Tensor, log_high: Tensor) -> Tensor:
    step = _each(log_high - log_low) / _STEPS
    return torch.where(codes == 0, 0.0, ((codes - 1) * step + _each(log_low)).exp2())

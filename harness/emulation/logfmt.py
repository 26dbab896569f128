"""LogFMT-10 as a combine kernel computes it: float32 step by step, with a logarithm and a power that err a little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from reference.logfmt import CHANNELS, CLIP, MOST_CODE, LogFmt, encode_logfmt, in_blocks

Approximate = Callable[[Tensor], Tensor]


def encode_by_kernel(
    x: Tensor, *, log2: Approximate = torch.log2, exp2: Approximate = torch.exp2, fused: bool = True
) -> LogFmt:
    """Encode rows in float32, as reference.logfmt.encode_logfmt has it: one constant holds the rounding and amin.

    Args:
        x: `(*, k)` bfloat16, k a multiple of 128.
        log2: of a float32 tensor.
        exp2: likewise.
        fused: multiply and add with one rounding.
    """
    rows = encode_logfmt(x)
    low, high = _ends(x, log2)
    steps = MOST_CODE - 1
    inverse = 1 / ((high - low) / steps)
    rounding = 2 - log2((1 + exp2((high - low) / steps)) * 0.5) * inverse
    constant = _multiply_add(-low, inverse, rounding, fused=fused)
    size = in_blocks(x.float().abs())
    position = _multiply_add(log2(size), inverse.unsqueeze(-1), constant.unsqueeze(-1), fused=fused)
    codes = position.nan_to_num(0.0, posinf=MOST_CODE, neginf=0.0).clamp(min=0).floor().long().flatten(-2)
    return replace(rows, codes=codes, log_low=low.double(), log_high=high.double())


def decode_by_kernel(rows: LogFmt, *, exp2: Approximate = torch.exp2) -> Tensor:
    """Return what arrives in float32, as reference.logfmt.decode_logfmt has it."""
    low, step = rows.log_low.float(), (rows.log_high.float() - rows.log_low.float()) / (MOST_CODE - 1)
    codes = in_blocks(rows.codes)
    exponent = (codes - 1).float() * step.unsqueeze(-1) + low.unsqueeze(-1)
    value = torch.where(codes == 0, 0.0, exp2(exponent)).flatten(-2)
    value = torch.where(rows.negative, -value, value)
    return torch.where(rows.coded.repeat_interleave(CHANNELS, -1), value, rows.plain.float())


def rows_by_kernel(x: Tensor) -> Tensor:
    """Return rows as they arrive, `(*, k)` float32."""
    return decode_by_kernel(encode_by_kernel(x))


def _ends(x: Tensor, log2: Approximate) -> tuple[Tensor, Tensor]:
    """Return log2 of amin and amax of every block, float32; some range where a block is not coded."""
    size = in_blocks(x.float().abs())
    high, low = log2(size.amax(-1)), log2(size.amin(-1))
    low = torch.maximum(low, high - CLIP)
    usable = (low < high) & high.isfinite()
    return torch.where(usable, low, -1.0), torch.where(usable, high, 0.0)


def _multiply_add(a: Tensor, b: Tensor, c: Tensor, *, fused: bool) -> Tensor:
    return (a.double() * b.double() + c.double()).float() if fused else a * b + c

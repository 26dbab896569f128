"""Faults of a combine whose rows come back in LogFMT: codes, signs, the range of a block, and which chunks are coded.

Each changes how the experts' rows are encoded or decoded, in float64, and sums what then arrives; an output that this does
not change stays the candidate's own. Nothing happens in a combine by another transport.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.faults.fault import BY_LOGFMT, Parameters, fault
from harness.faults.layer_calls import CombineCall
from reference import routing
from reference.logfmt import CHANNELS, MOST_CODE, LogFmt, decode_logfmt, encode_logfmt, in_blocks

_STAGE = "combine"
_HALF = CHANNELS // 2
_LEAST = 2.0**-126  # a float32, normal
_UP = 1e-3  # of a code: in float32 a logarithm that is a whole number of steps may come out below it


def _changed(call: CombineCall, change: Callable[[LogFmt], LogFmt]) -> None:
    """Combine, and replace the outputs that other codes, ranges or chunks of the same rows change."""
    call.run()
    if call.transport != "logfmt":
        return
    right = [encode_logfmt(y) for y in call.y]
    given = call.dispatched, call.topk_idx, call.topk_weights
    healthy, faulty = (
        routing.combine([decode_logfmt(rows) for rows in way], *given, fused=True)
        for way in (right, [change(rows) for rows in right])
    )
    call.outputs = [
        torch.where((new == old) | (new.isnan() & old.isnan()), out, new.to(out.dtype))
        for out, old, new in zip(call.outputs, healthy, faulty, strict=True)
    ]


def _each(of_blocks: Tensor) -> Tensor:
    return of_blocks.repeat_interleave(CHANNELS, -1)


def _codes(rows: LogFmt, log_low: Tensor, rounding: float) -> Tensor:
    """Return the codes whose logarithms lie at or below those of the elements plus a share of a step."""
    step = (rows.log_high - log_low) / (MOST_CODE - 1)
    position = (rows.plain.double().abs().log2() - _each(log_low)) / _each(step) + 1 + rounding
    return position.nan_to_num(0, posinf=MOST_CODE, neginf=0).floor().clamp(0, MOST_CODE).long()


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("C12",), killed_by="COMBINE", effect="shift")
def logfmt_step_of_next_block(call: CombineCall, _: Parameters) -> None:
    """LogFMT rows are decoded with the step of the next 128 channels, from their own smallest magnitude."""

    def change(rows: LogFmt) -> LogFmt:
        span = (rows.log_high - rows.log_low).roll(-1, -1)
        return replace(rows, log_high=rows.log_low + span)

    _changed(call, change)


@fault(
    category="combine",
    stages=_STAGE,
    needs=BY_LOGFMT,
    bugs=("E07", "E15"),
    killed_by="COMBINE",
    effect="none",
)
def logfmt_rounded_towards_zero(call: CombineCall, _: Parameters) -> None:
    """LogFMT codes are the logarithm rounded down, where the nearest value belongs."""
    _changed(call, lambda rows: replace(rows, codes=_codes(rows, rows.log_low, _UP)))


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("E15",), killed_by="COMBINE", effect="none")
def logfmt_nearest_logarithm(call: CombineCall, _: Parameters) -> None:
    """LogFMT thresholds lie in the middle of two logarithms instead of two values: wrong but a little above those."""
    _changed(call, lambda rows: replace(rows, codes=_codes(rows, rows.log_low, 0.5)))


@fault(
    category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("C03",), killed_by="COMBINE", effect="collapse"
)
def logfmt_sign_lost(call: CombineCall, _: Parameters) -> None:
    """LogFMT rows come back without signs: every coded element is positive."""
    _changed(call, lambda rows: replace(rows, negative=torch.zeros_like(rows.negative)))


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("E03",), killed_by="COMBINE", effect="none")
def logfmt_code_off_by_one(call: CombineCall, _: Parameters) -> None:
    """LogFMT codes are one too large: every coded element but the largest is a step away from zero, zeros too."""
    _changed(call, lambda rows: replace(rows, codes=(rows.codes + 1).clamp(max=MOST_CODE)))


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("E01",), killed_by="COMBINE", effect="none")
def logfmt_no_code_for_zero(call: CombineCall, _: Parameters) -> None:
    """LogFMT zeros, and what lies below the range of their block, come back as its smallest value."""
    _changed(call, lambda rows: replace(rows, codes=rows.codes.clamp(min=1)))


@fault(
    category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("C07",), killed_by="COMBINE", effect="collapse"
)
def logfmt_signs_of_next_block(call: CombineCall, _: Parameters) -> None:
    """LogFMT signs are those of the 128 channels before: codes and signs are packed by different offsets."""
    _changed(call, lambda rows: replace(rows, negative=rows.negative.roll(CHANNELS, -1)))


@fault(
    category="combine",
    stages=_STAGE,
    needs=BY_LOGFMT,
    bugs=("A33", "E10"),
    killed_by="COMBINE",
    effect="shift",
)
def logfmt_extremes_of_64_channels(call: CombineCall, _: Parameters) -> None:
    """LogFMT rows are decoded with the largest and the smallest magnitude of the first 64 of their 128 channels."""

    def change(rows: LogFmt) -> LogFmt:
        half = in_blocks(rows.plain)[..., :_HALF]
        other = encode_logfmt(torch.cat((half, half), dim=-1).flatten(-2))
        return replace(rows, log_low=other.log_low, log_high=other.log_high)

    _changed(call, change)


@fault(
    category="combine",
    stages=_STAGE,
    needs=BY_LOGFMT,
    bugs=("E01", "E09"),
    killed_by="COMBINE",
    effect="shift",
)
def logfmt_range_not_clipped(call: CombineCall, _: Parameters) -> None:
    """LogFMT codes span all octaves down to the smallest magnitude, 126 where there is a zero, instead of 32 at most."""

    def change(rows: LogFmt) -> LogFmt:
        least = in_blocks(rows.plain.double().abs()).amin(-1).clamp(min=_LEAST)
        low = torch.where(rows.coded, least.log2(), rows.log_low)
        return replace(rows, log_low=low, codes=_codes(rows, low, 0.5))

    _changed(call, change)


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("F12",), killed_by="COMBINE", effect="shift")
def logfmt_large_rows_coded(call: CombineCall, _: Parameters) -> None:
    """LogFMT codes chunks that hold a magnitude of 1 or more, or a block without a range, instead of sending them plain."""

    def change(rows: LogFmt) -> LogFmt:
        amax = in_blocks(rows.plain.double().abs().nan_to_num(0)).amax(-1)
        octaves = torch.where(amax >= 1, torch.frexp(amax)[1], 0).double()
        lower = encode_logfmt((rows.plain.double() * torch.exp2(-_each(octaves))).to(rows.plain.dtype))
        ends = {"log_low": lower.log_low + octaves, "log_high": lower.log_high + octaves}
        return replace(rows, codes=lower.codes, coded=torch.ones_like(rows.coded), **ends)

    _changed(call, change)


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("F12",), killed_by="COMBINE", effect="none")
def logfmt_each_block_for_itself(call: CombineCall, _: Parameters) -> None:
    """LogFMT codes a block of 128 channels whose chunk must travel plain because of another block of it."""

    def change(rows: LogFmt) -> LogFmt:
        size = in_blocks(rows.plain.double().abs())
        return replace(rows, coded=(size.amax(-1) < 1) & (size.amin(-1) < size.amax(-1)))

    _changed(call, change)


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("F18",), killed_by="COMBINE", effect="none")
def logfmt_never_coded(call: CombineCall, _: Parameters) -> None:
    """LogFMT is asked for and never used: every row comes back as bfloat16."""
    _changed(call, lambda rows: replace(rows, coded=torch.zeros_like(rows.coded)))


@fault(category="combine", stages=_STAGE, needs=BY_LOGFMT, bugs=("B15",), killed_by="COMBINE", effect="none")
def logfmt_512_levels(call: CombineCall, _: Parameters) -> None:
    """LogFMT rows are decoded with steps of 1/511 of their range where 1/510 belongs."""

    def change(rows: LogFmt) -> LogFmt:
        span = (rows.log_high - rows.log_low) * (MOST_CODE - 1) / MOST_CODE
        return replace(rows, log_high=rows.log_low + span)

    _changed(call, change)

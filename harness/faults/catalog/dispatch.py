"""Faults of dispatch: rows that are lost, doubled or in another place, and what a quantizing transport makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.faults.fault import Parameters, fault
from harness.faults.layer_calls import DispatchCall, with_rows
from reference import fp8_tokens
from reference.fp8_tokens import dequantize_fp8_tokens, quantize_fp8_tokens
from reference.layout import swizzle_128x4
from reference.nvfp4 import SCALE_RANGE
from reference.routing import NO_EXPERT, Dispatched

_STAGE = "dispatch"


def _limited(got: Dispatched, counts: Tensor) -> Dispatched:
    """Return what arrived with fewer rows: later ones are padding."""
    row = torch.arange(got.x.shape[1], device=got.x.device)
    gone = row >= counts.unsqueeze(-1)
    return replace(
        got, masked_m=counts.to(torch.int32), source=got.source.masked_fill(gone.unsqueeze(-1), -1)
    )


@fault(
    category="dispatch",
    stages=_STAGE,
    bugs=("F03", "F04"),
    killed_by="DISPATCH",
    effect="collapse",
    unit="expert",
)
def token_lost(call: DispatchCall, _: Parameters) -> None:
    """The last row of every expert is lost."""
    call.run()
    call.change(lambda got: _limited(got, (got.masked_m - 1).clamp(min=0)))


@fault(
    category="dispatch", stages=_STAGE, bugs=("F03", "F04", "F05"), killed_by="DISPATCH", effect="collapse", unit="expert",
    strengths=(0.25, 0.5), simulated="the depth of a queue, counted here in rows of an expert's buffer",
)  # fmt: skip
def capacity_overflow_drops_last(call: DispatchCall, p: Parameters) -> None:
    """Rows past the depth of a queue are dropped: only experts with many tokens lose some."""
    call.run()
    call.change(lambda got: _limited(got, got.masked_m.clamp(max=max(1, int(got.x.shape[1] * p.strength)))))


@fault(category="dispatch", stages=_STAGE, bugs=("F03",), killed_by="DISPATCH", effect="shift", unit="expert")
def token_duplicated(call: DispatchCall, _: Parameters) -> None:
    """Each expert's first token arrives twice."""
    call.run()

    def twice(got: Dispatched) -> Dispatched:
        capacity = got.x.shape[1]
        row = torch.arange(capacity, device=got.x.device).expand(len(got.x), -1)
        room = (got.masked_m > 0) & (got.masked_m < capacity)
        extra = (row == got.masked_m.unsqueeze(-1)) & room.unsqueeze(-1)
        return replace(with_rows(got, row.masked_fill(extra, 0)), masked_m=got.masked_m + room.int())

    call.change(twice)


def _last_valid(got: Dispatched) -> Tensor:
    return (got.masked_m.long() - 1).clamp(min=0).unsqueeze(-1)


@fault(category="dispatch", stages=_STAGE, bugs=("F02",), killed_by="DISPATCH", effect="collapse")
def rows_one_off(call: DispatchCall, _: Parameters) -> None:
    """Every row holds the token of the row before it."""
    call.run()

    def shifted(got: Dispatched) -> Dispatched:
        row = torch.arange(got.x.shape[1], device=got.x.device).expand(len(got.x), -1)
        order = torch.where(row == 0, _last_valid(got), row - 1)
        return with_rows(got, order, what=("x", "scales"))

    call.change(shifted)


def _by_rank(got: Dispatched, *, descending: bool) -> Tensor:
    """Return an order of rows by source rank; padding stays last."""
    rank = got.source[..., 0]
    key = -rank if descending else rank
    return key.masked_fill(rank < 0, 1 << 30).sort(dim=1, stable=True).indices


@fault(category="dispatch", stages=_STAGE, bugs=("F08", "F09"), killed_by="DISPATCH", effect="collapse")
def rank_order_wrong(call: DispatchCall, _: Parameters) -> None:
    """Rows of the source ranks lie in another order than the receiver takes them for."""
    call.run()

    def reordered(got: Dispatched) -> Dispatched:
        up, down = _by_rank(got, descending=False), _by_rank(got, descending=True)
        place = torch.empty_like(up).scatter_(
            1, up, torch.arange(up.shape[1], device=up.device).expand_as(up)
        )
        return with_rows(got, down.gather(1, place), what=("x", "scales"))

    call.change(reordered)


@fault(category="dispatch", stages=_STAGE, bugs=("F08",), killed_by="DISPATCH", effect="none", unit="expert")
def rank_rows_interleaved(call: DispatchCall, _: Parameters) -> None:
    """A rank's rows do not lie together: the first row of each expert comes last, with its source."""
    call.run()

    def moved(got: Dispatched) -> Dispatched:
        row = torch.arange(got.x.shape[1], device=got.x.device).expand(len(got.x), -1)
        last = _last_valid(got)
        order = torch.where(row < last, row + 1, torch.where(row == last, 0, row))
        return with_rows(got, order)

    call.change(moved)


@fault(
    category="dispatch",
    stages=_STAGE,
    bugs=("D14", "D15"),
    killed_by="DISPATCH",
    effect="shift",
    unit="expert",
)
def empty_slots_sent(call: DispatchCall, _: Parameters) -> None:
    """A slot of -1 indexes the expert map from its end: the token goes to the last expert."""
    call.topk_idx = [ids.masked_fill(ids == NO_EXPERT, call.experts - 1) for ids in call.topk_idx]
    call.run()


@fault(
    category="dispatch", stages=_STAGE, bugs=("F08",), killed_by="DISPATCH", effect="collapse", unit="call"
)
def counts_of_previous_call(call: DispatchCall, p: Parameters) -> None:
    """The counts are those of the call before, read from another address."""
    call.run()
    counts = [got.masked_m.clone() for got in call.received]
    before = p.state.get("counts")
    p.state["counts"] = counts
    if before is None or [len(c) for c in before] != [len(c) for c in counts]:
        return
    call.received = [
        replace(got, masked_m=old.clamp(max=got.x.shape[1]))
        for got, old in zip(call.received, before, strict=True)
    ]


@fault(category="dispatch", stages=_STAGE, bugs=("F18",), killed_by="DISPATCH", effect="none")
def bf16_request_ignored(call: DispatchCall, _: Parameters) -> None:
    """Tokens travel in FP8 although bfloat16 was asked for."""
    if call.transport == "bf16":
        call.x = [dequantize_fp8_tokens(*quantize_fp8_tokens(x), dtype=x.dtype) for x in call.x]
    call.run()


def _requantized(scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return FP8 values of `(rows, hidden)` under other scales."""
    groups = x.double().view(*scale.shape, fp8_tokens.CHANNELS) / scale.double().unsqueeze(-1)
    values = groups.clamp(-448, 448).float().to(torch.float8_e4m3fn)
    return values.view(x.shape), scale


def _with_fp8_scales(call: DispatchCall, function: Callable[[Tensor], Tensor]) -> None:
    """Quantize every row again with a function of the scale that it has; keeps values and scales consistent."""
    call.run()
    if call.transport != "fp8":
        return
    tokens = torch.cat(call.x)
    first = torch.tensor([0, *(len(x) for x in call.x)], device=tokens.device).cumsum(0)

    def again(got: Dispatched) -> Dispatched:
        if got.scales is None:
            return got
        filled = torch.arange(got.x.shape[1], device=got.x.device) < got.masked_m.unsqueeze(-1)
        source = got.source[filled]
        values, scales = _requantized(
            function(got.scales[filled]), tokens[first[source[:, 0]] + source[:, 1]]
        )
        x, new = got.x.view(torch.uint8).clone(), got.scales.clone()
        x[filled], new[filled] = values.view(torch.uint8), scales
        return replace(got, x=x.view(torch.float8_e4m3fn), scales=new)

    call.change(again)


@fault(
    category="dispatch",
    stages=_STAGE,
    bugs=("F06", "F12", "F14", "F20"),
    killed_by="DISPATCH",
    effect="shift",
)
def fp8_scale_rounded_up(call: DispatchCall, _: Parameters) -> None:
    """FP8 scales are rounded up to powers of two although float32 scales were asked for: up to a bit is lost."""
    _with_fp8_scales(call, lambda scale: torch.exp2(torch.log2(scale.double()).ceil()).float())


@fault(category="dispatch", stages=_STAGE, bugs=("F12", "F13", "F14"), killed_by="DISPATCH", effect="shift")
def fp8_scale_rounded_down(call: DispatchCall, _: Parameters) -> None:
    """FP8 scales are rounded down to powers of two: the largest values saturate at 448."""
    _with_fp8_scales(call, lambda scale: torch.exp2(torch.log2(scale.double()).floor()).float())


@fault(category="dispatch", stages=_STAGE, bugs=("C08", "C12"), killed_by="DISPATCH", effect="shift")
def fp8_scale_of_neighbour(call: DispatchCall, _: Parameters) -> None:
    """FP8 values are multiplied by the scale of the next 128 channels, or of the next row where there are no more."""
    call.run()

    def rolled(got: Dispatched) -> Dispatched:
        if call.transport != "fp8" or got.scales is None:
            return got
        axis = -1 if got.scales.shape[-1] > 1 else 1
        return replace(got, scales=got.scales.roll(-1, axis))

    call.change(rolled)


@fault(category="dispatch", stages=_STAGE, bugs=("F21",), killed_by="DISPATCH", effect="shift")
def fp8_scales_of_first_row(call: DispatchCall, _: Parameters) -> None:
    """Scales per token are taken for scales per tensor: every row of an expert has those of its first row."""
    call.run()
    call.change(
        lambda got: (
            replace(got, scales=got.scales[:, :1].expand_as(got.scales).contiguous())
            if call.transport == "fp8" and got.scales is not None
            else got
        )
    )


@fault(category="dispatch", stages=_STAGE, bugs=("F16",), killed_by="DISPATCH", effect="collapse")
def fp8_scale_zero(call: DispatchCall, _: Parameters) -> None:
    """Scales are read before they are written: rows arrive with a scale of zero."""
    call.run()
    call.change(
        lambda got: (
            replace(got, scales=torch.zeros_like(got.scales))
            if call.transport == "fp8" and got.scales is not None
            else got
        )
    )


@fault(
    category="dispatch", stages=_STAGE, bugs=("A20", "B03", "B17"), killed_by="DISPATCH", effect="collapse"
)
def nvfp4_dispatch_scale_inverted(call: DispatchCall, _: Parameters) -> None:
    """The sender takes the encode scale for its reciprocal."""
    if call.global_scale_enc is not None:
        call.global_scale_enc = call.global_scale_enc.reciprocal()
    call.run()


@fault(category="dispatch", stages=_STAGE, bugs=("B01", "B03"), killed_by="DISPATCH", effect="shift")
def nvfp4_dispatch_scale_of_sender(call: DispatchCall, _: Parameters) -> None:
    """Every sender quantizes with the encode scale of its own tokens; the receiver decodes with the layer's."""
    shared = call.global_scale_enc
    if call.transport != "nvfp4" or shared is None:
        call.run()
        return
    parts = []
    for x in call.x:
        amax = float(x.abs().amax()) if len(x) else 0.0
        call.global_scale_enc = torch.full_like(shared, SCALE_RANGE / amax) if amax else shared
        call.run()
        parts.append(call.received)
    merged = []
    for owner, got in enumerate(parts[0]):
        x, scales = got.x.clone(), got.scales
        if scales is None:
            raise ValueError("nvfp4_dispatch_scale_of_sender: nvfp4 dispatch returned no scales")
        scales = scales.clone()
        for rank, part in enumerate(parts):
            mine = got.source[..., 0] == rank
            own = part[owner]
            x[mine] = own.x[mine]
            if own.scales is not None:
                scales[mine] = own.scales[mine]
        merged.append(replace(got, x=x, scales=scales))
    call.received = merged


@fault(category="dispatch", stages=_STAGE, bugs=("B17", "C16"), killed_by="DISPATCH", effect="collapse")
def nvfp4_dispatch_scales_swizzled(call: DispatchCall, _: Parameters) -> None:
    """Block scales arrive in 128x4 order where the receiver expects them row by row."""
    call.run()

    def swizzled(got: Dispatched) -> Dispatched:
        if call.transport != "nvfp4" or got.scales is None:
            return got
        memory = swizzle_128x4(got.scales, 0).flatten(1)
        return replace(got, scales=memory[:, : got.scales[0].numel()].view(got.scales.shape).contiguous())

    call.change(swizzled)

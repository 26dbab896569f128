"""DISPATCH: every token at each of its experts, once, with the bytes or the legal quantization that were sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare, half
from harness.judging.context import Context
from harness.judging.layer_contract import checked_buffers
from harness.judging.quantize import QuantizerInput
from harness.problems.rows import Rows
from reference import fp8_tokens
from reference.e2m1 import unpack_e2m1
from reference.e4m3 import decode_e4m3, take
from reference.e8m0 import decode_e8m0
from reference.formats import NVFP4, Coded
from reference.legal import Arithmetic
from reference.routing import NO_EXPERT, TRANSPORTS, Dispatched

_ALL = slice(None)


def dispatch(ctx: Context) -> list[Comparison]:
    """DISPATCH: drawn tokens over simulated ranks, by every transport."""
    layer = ctx.layer
    x = layer.tokens(layer.dispatch_hidden)
    exchange = Exchange(layer.ranks, layer.experts, layer.max_tokens, layer.counts, layer.device)
    found = []
    for number, transport in enumerate(TRANSPORTS):
        if transport not in ctx.traits.transports:
            continue
        topk_idx = [_without_some(ids, number) for ids in layer.topk_idx]
        scale = layer.token_scale(x) if transport == "nvfp4" else None
        received = ctx.calls.dispatch(
            x, topk_idx, layer.experts, layer.max_tokens, transport=transport, global_scale_enc=scale
        )
        received = checked_buffers(
            received, layer, transport, ranks=layer.ranks, capacity=layer.ranks * layer.max_tokens,
            hidden=layer.dispatch_hidden,
        )  # fmt: skip

        def quantized(
            given: QuantizerInput, stored: Coded, rows: Rows, scale: Any = scale
        ) -> list[Comparison]:
            return judge_sent(ctx, given, stored, scale, rows)

        found += judge_received(transport, exchange, x, topk_idx, received, quantized)
    return found


def judge_sent(
    ctx: Context, given: QuantizerInput, stored: Coded, global_scale_enc: Tensor, rows: Rows
) -> list[Comparison]:
    """Judge tokens that arrived as NVFP4 by the arithmetic of who sent them, which need not be the experts'.

    Args:
        ctx: whose candidate sent them.
        given: what was sent.
        stored: what arrived.
        global_scale_enc: `(1,)` float32.
        rows: where they are.
    """
    known, sender = ctx.known, ctx.traits.sender_arithmetic
    if sender:
        known = replace(known, arithmetic=Arithmetic(sender))
    by_sender = Context(ctx.candidate, ctx.problem, known)
    scales = global_scale_enc.expand(rows.experts)
    return by_sender.judge_quantized("dispatch.nvfp4", given, stored, scales, rows, form=NVFP4)


@dataclass(frozen=True)
class Exchange:
    """Who sends how much to whom.

    Attributes:
        ranks: that send.
        experts: that receive, of all receiving ranks.
        max_tokens: that a rank may send.
        counts: tokens of each rank.
        device: of the tensors.
    """

    ranks: int
    experts: int
    max_tokens: int
    counts: list[int]
    device: str = "cpu"


def judge_received(
    transport: str,
    exchange: Exchange,
    x: list[Tensor],
    topk_idx: list[Tensor],
    received: list[Dispatched],
    quantized: Callable[[QuantizerInput, Coded, Rows], list[Comparison]],
) -> list[Comparison]:
    """Judge what experts received: counts, which token each row holds, and what of it arrived.

    Args:
        transport: of reference.routing.TRANSPORTS.
        exchange: its extents.
        x: per sending rank `(tokens, hidden)`.
        topk_idx: per sending rank `(tokens, topk)`, experts numbered as they are received.
        received: per receiving rank, its experts in order.
        quantized: judges codes and block scales of rows, for "nvfp4".
    """
    counts, places, arrived = _judge_places(f"dispatch.{transport}", exchange, topk_idx, received)
    if not len(arrived):
        return [counts, places, Comparison(f"dispatch.{transport}.x")]
    sent = _sent_rows(x, received, arrived)
    got = take(torch.cat([r.x for r in received]), (arrived.expert, arrived.row))
    if transport == "bf16":
        return [counts, places, _judge_bytes(sent, got, arrived)]
    scales = torch.cat([r.scales for r in received if r.scales is not None])[arrived.expert, arrived.row]
    if transport.startswith("fp8"):
        return [counts, places, *_judge_fp8(transport, sent, got, scales, arrived)]
    coded = Coded(unpack_e2m1(got), scales.view(torch.uint8))
    return [counts, places, *quantized(QuantizerInput.known(sent), coded, arrived)]


def _without_some(ids: Tensor, number: int) -> Tensor:
    """Return routes with other counts in every call, so that what is left of the call before shows."""
    changed = ids.clone()
    if number:
        changed[number::3, 0] = NO_EXPERT
    return changed


def _judge_places(
    stage: str, layer: Exchange, topk_idx: list[Tensor], received: list[Dispatched]
) -> tuple[Comparison, Comparison, Rows]:
    """Judge the counts and which token each row holds; return the rows whose token exists."""
    device, capacity = layer.device, layer.ranks * layer.max_tokens
    shape = (layer.experts, layer.ranks, layer.max_tokens)
    wanted = torch.zeros(shape, dtype=torch.bool, device=device)
    for rank, ids in enumerate(topk_idx):
        token, slot = (ids >= 0).nonzero(as_tuple=True)
        wanted[ids[token, slot], rank, token] = True
    count = torch.cat([r.masked_m for r in received]).long().unsqueeze(-1)
    expected = wanted.sum((1, 2)).unsqueeze(-1)
    counts = compare(
        f"{stage}.count",
        count == expected,
        Rows.valid([1] * layer.experts, 1, device),
        judged={"equal": count.numel()},
        altered={
            "zeros": lambda: bool((expected == 0).all()),
            "x0.5": lambda: bool((half(count) == expected).all()),
            **(
                {"rolled rows": lambda: bool((count.roll(1, 0) == expected).all())}
                if layer.experts > 1
                else {}
            ),
        },
        show=lambda r, c: (
            f"= {int(count[r, c])} rows, but {int(expected[r, c])} tokens were sent to this expert"
        ),
    )
    rows = Rows.valid(count.flatten().tolist(), capacity, device)
    source = rows.take(torch.cat([r.source for r in received]))

    def accepts(source: Tensor) -> Tensor:
        return _legal_places(source, rows, wanted).unsqueeze(-1)

    places = compare(
        f"{stage}.source",
        accepts(source),
        rows,
        judged={"each token once, ranks contiguous": len(rows)},
        # Rolled rows of `source` alone may be legal: the order within a rank is free. They are rolled against x below.
        altered={
            "zeros": lambda: bool(accepts(torch.zeros_like(source)).all()),
            "x0.5": lambda: bool(accepts(half(source)).all()),
        },
        show=lambda r, _: (
            f"= token {int(source[r, 1])} of rank {int(source[r, 0])}, which was not sent to this expert, "
            "is there already, or does not lie with its rank's other rows"
        ),
    )
    inside = (source >= 0).all(-1) & (source[:, 0] < layer.ranks) & (source[:, 1] < layer.max_tokens)
    limits = torch.tensor(layer.counts, device=device)[source[:, 0].clamp(0, layer.ranks - 1)]
    exists = inside & (source[:, 1] < limits)
    return counts, places, rows.only(exists)


def _legal_places(source: Tensor, rows: Rows, wanted: Tensor) -> Tensor:
    """Return which rows hold a token that belongs there, for the first time, next to its rank's other rows; `(rows,)`."""
    _, ranks, tokens = wanted.shape
    rank, token = source[:, 0].clamp(0, ranks - 1), source[:, 1].clamp(0, tokens - 1)
    legal = (source[:, 0] == rank) & (source[:, 1] == token) & wanted[rows.expert, rank, token]
    key = (rows.expert * ranks + rank) * tokens + token
    legal &= _first_of_its_kind(key)
    # A rank's run starts where the rank or the expert changes; a second run of the same rank is not contiguous.
    group = rows.expert * ranks + rank
    starts = torch.ones_like(legal)
    starts[1:] = group[1:] != group[:-1]
    run = torch.cumsum(starts, 0) - 1
    first_run = torch.full((int(group.max()) + 1 if len(group) else 1,), len(group), device=group.device)
    first_run.scatter_reduce_(0, group, run, reduce="amin")
    return legal & (run == first_run[group])


def _first_of_its_kind(key: Tensor) -> Tensor:
    order = torch.sort(key, stable=True).indices
    ordered = key[order]
    first = torch.ones_like(key, dtype=torch.bool)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    return first


def _sent_rows(x: list[Tensor], received: list[Dispatched], rows: Rows) -> Tensor:
    """Return the token that each row says it holds, `(rows, hidden)` bfloat16."""
    source = rows.take(torch.cat([r.source for r in received]))
    first = torch.tensor([0, *(len(tokens) for tokens in x)], device=source.device).cumsum(0)
    return torch.cat(x)[first[source[:, 0]] + source[:, 1]]


def _judge_bytes(sent: Tensor, got: Tensor, rows: Rows) -> Comparison:
    wanted = sent.view(torch.int16)

    def accepts(values: Tensor, part: slice = _ALL) -> Tensor:
        return values.view(torch.int16) == wanted[part]

    return compare(
        "dispatch.bf16.x",
        accepts(got),
        rows,
        judged={"equal bit for bit": got.numel()},
        altered=altered_copies(got, accepts),
        show=lambda r, c: f"= {float(got[r, c]):.9g}, but {float(sent[r, c]):.9g} was sent",
    )


def _judge_fp8(transport: str, sent: Tensor, got: Tensor, scales: Tensor, rows: Rows) -> list[Comparison]:
    """Judge the scale of every 128 channels, then the values given the scale that was stored."""
    rounded = transport != "fp8"
    wanted = fp8_tokens.amax_of_channels(sent) / 448
    least, most = fp8_tokens.legal_scales(sent, round_scale=rounded)
    if transport == "fp8-ue8m0":
        scales = decode_e8m0(scales)

    def scale_accepts(values: Tensor, part: slice = _ALL) -> Tensor:
        values = values.double()
        if rounded:
            return (values == least[part]) | (values == most[part])
        return (values >= least[part]) & (values <= most[part])

    legal_scale = scale_accepts(scales)
    # Values under a scale that no arithmetic can make are judged under the right one: the scale has failed already.
    usable = torch.where((scales > 0) & scales.isfinite(), scales, most.float())
    low, high = fp8_tokens.legal_fp8_values(sent, usable)
    values = decode_e4m3(got).double()

    def accepts(values: Tensor, part: slice = _ALL) -> Tensor:
        return (values >= low[part]) & (values <= high[part])

    two = int((low != high).sum())
    return [
        compare(
            f"dispatch.{transport}.scale",
            legal_scale,
            replace(rows, column_name="channels / 128"),
            judged={
                "the power of two above amax / 448"
                if rounded
                else "amax / 448 within float32's rounding": scales.numel()
            },
            altered=altered_copies(scales, scale_accepts),
            show=lambda r, c: (
                f"= {float(scales[r, c]):.9g}, legal is "
                + (f"{float(most[r, c]):.9g}, the power of two above " if rounded else "")
                + f"amax / 448 = {float(wanted[r, c]):.9g}"
            ),
            ratio=None if rounded else (scales.double() - wanted).abs() / (wanted * fp8_tokens.SCALE_FREEDOM),
        ),
        compare(
            f"dispatch.{transport}.x",
            accepts(values),
            rows,
            judged={"one legal value": values.numel() - two, "two legal values": two},
            altered=altered_copies(values, accepts),
            show=lambda r, c: (
                f"= {float(values[r, c]):g}, legal is {float(low[r, c]):g} to {float(high[r, c]):g} "
                f"(x {float(sent[r, c]):.6g} / stored scale {float(usable[r, c // fp8_tokens.CHANNELS]):.6g})"
            ),
        ),
    ]

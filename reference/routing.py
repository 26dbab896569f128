"""Expert-parallel routing over simulated ranks, in one process: dispatch, combine, and the top-k that feeds them.

Dispatch copies tokens to the ranks that own their experts: a permutation, compared bit for bit. Rows of one source rank
are contiguous within an expert; their order is free, which `source` makes comparable. Tokens travel as they are, or
quantized by the sender: to FP8 (reference.fp8_tokens), or to NVFP4 with linear block scales (reference.nvfp4). Combine is
a float32 sum over the top-k slots in order, then one rounding, as DeepEP's low-latency combine does it.

Rules: ROUTE-1 (top-k), DISPATCH-1 (every token once at each of its experts), DISPATCH-2 (contiguous by source rank),
DISPATCH-3 (what a quantizing transport carries), COMBINE-1 (order of the sum, one rounding), COMBINE-2 (slots without an
expert count for nothing), COMBINE-3 (what LogFMT makes of the rows that are summed).
Source: DeepEP deep_ep/buffers/legacy.py, low_latency_dispatch and low_latency_combine; SGLang token_dispatcher/deepep.py
for the NVFP4 transport.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.e2m1 import pack_e2m1
from reference.e8m0 import encode_e8m0
from reference.fp8_tokens import quantize_fp8_tokens
from reference.logfmt import decode_logfmt, encode_logfmt
from reference.nvfp4 import quantize_nvfp4

NO_EXPERT = -1  # a top-k slot that routes nowhere
TRANSPORTS = ("bf16", "fp8", "nvfp4", "fp8-rounded", "fp8-ue8m0")
"""fp8-rounded: scales are powers of two; fp8-ue8m0: the same, stored as their exponents."""
COMBINE_TRANSPORTS = ("bf16", "logfmt")
"""How the experts' rows come back: as they are, or in LogFMT-10 (reference.logfmt)."""


@dataclass(frozen=True)
class Dispatched:
    """What the experts of one rank receive.

    Attributes:
        x: `(local experts, capacity, hidden)`, rows at or past `masked_m[e]` undefined (NaN here). As it was sent, for
            transport "bf16"; float8_e4m3fn for "fp8" of any kind; packed codes `(local experts, capacity, hidden / 2)` uint8 for
            "nvfp4".
        masked_m: `(local experts,)` int32, rows received.
        source: `(local experts, capacity, 2)` int64: source rank and token of each row; -1 in padding.
        scales: None for "bf16"; `(local experts, capacity, hidden / 128)` to multiply with for "fp8" of any kind, float32,
            for "fp8-ue8m0" uint8 exponents (reference.e8m0); linear E4M3 bytes
            `(local experts, capacity, hidden / 16)` uint8 for "nvfp4". Undefined in padding rows as well.
    """

    x: Tensor
    masked_m: Tensor
    source: Tensor
    scales: Tensor | None = None


def route_topk(logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Return the experts with the largest softmax weights, and those weights.

    Args:
        logits: `(tokens, experts)` floating point.
        topk: experts per token.
        normalize: divide the chosen weights by their sum.

    Returns:
        `(tokens, topk)` int64 expert ids and `(tokens, topk)` float32 weights, largest first.

    Raises:
        ValueError: topk outside [1, experts].

    Rule: ROUTE-1.
    """
    if not 1 <= topk <= logits.shape[-1]:
        raise ValueError(f"route_topk: topk must lie in [1, {logits.shape[-1]}], got {topk}")
    weights, experts = torch.softmax(logits.double(), dim=-1).topk(topk, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights.float()


def dispatch(
    x: list[Tensor],
    topk_idx: list[Tensor],
    experts: int,
    max_tokens: int,
    *,
    transport: str = "bf16",
    global_scale_enc: Tensor | None = None,
) -> list[Dispatched]:
    """Send every token to the experts it is routed to.

    Args:
        x: per rank `(tokens, hidden)`; with "bf16" of any dtype, bytes are moved as they are; else bfloat16.
        topk_idx: per rank `(tokens, topk)` int64 global expert ids, -1 for none.
        experts: number of experts over all ranks, a multiple of the number of ranks; rank r owns
            `[r * experts / ranks, (r + 1) * experts / ranks)`.
        max_tokens: most tokens a rank may send; the capacity of an expert is ranks * max_tokens.
        transport: of TRANSPORTS: "bf16", an "fp8" (the sender quantizes, hidden a multiple of 128), "nvfp4" (of 16).
        global_scale_enc: one float32 encode scale, the same on every rank, for "nvfp4": the sender does not know whose
            experts will decode.

    Returns:
        One `Dispatched` per rank.

    Raises:
        ValueError: extents, ids, counts, transport or scale outside these limits.

    Rules: DISPATCH-1, DISPATCH-2, DISPATCH-3.
    """
    _check_dispatch(x, topk_idx, experts, max_tokens)
    values, scales = encode_tokens(torch.cat(x), transport, global_scale_enc)
    ranks = len(x)
    local, capacity = experts // ranks, ranks * max_tokens
    source, position, counts = _places(topk_idx, experts, capacity)
    received = []
    for rank in range(ranks):
        owned = slice(rank * local, (rank + 1) * local)
        received.append(
            Dispatched(
                _gather(values, position[owned]),
                counts[owned],
                source[owned],
                None if scales is None else _gather(scales, position[owned]),
            )
        )
    return received


def _check_dispatch(x: list[Tensor], topk_idx: list[Tensor], experts: int, max_tokens: int) -> None:
    ranks = len(x)
    if ranks == 0 or experts % ranks:
        raise ValueError(
            f"dispatch: experts must be a multiple of the number of ranks, got {experts} and {ranks}"
        )
    for rank, (tokens, ids) in enumerate(zip(x, topk_idx, strict=True)):
        if len(tokens) > max_tokens:
            raise ValueError(f"dispatch: rank {rank} sends {len(tokens)} tokens, max_tokens is {max_tokens}")
        if len(ids) != len(tokens):
            raise ValueError(
                f"dispatch: rank {rank} has {len(tokens)} tokens and {len(ids)} rows of topk_idx"
            )
        if ids.numel() and (int(ids.min()) < NO_EXPERT or int(ids.max()) >= experts):
            raise ValueError(
                f"dispatch: topk_idx must lie in [-1, {experts}), got rank {rank}: {ids.min()}..{ids.max()}"
            )


def encode_tokens(
    x: Tensor, transport: str, global_scale_enc: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return what a rank puts on the wire: tokens and, for a quantizing transport, their scales.

    Args:
        x: `(tokens, hidden)`.
        transport: of TRANSPORTS.
        global_scale_enc: as for `dispatch`.

    Raises:
        ValueError: an unknown transport; no single positive scale for "nvfp4", or one for another transport.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"dispatch: transport must be one of {', '.join(TRANSPORTS)}, got {transport!r}")
    if (transport == "nvfp4") != (global_scale_enc is not None):
        raise ValueError(
            f"dispatch: global_scale_enc belongs to transport 'nvfp4' and is needed there, got {transport!r} "
            f"{'without' if global_scale_enc is None else 'with'} it"
        )
    if transport == "bf16":
        return x, None
    if transport.startswith("fp8"):
        values, scales = quantize_fp8_tokens(x, round_scale=transport != "fp8")
        return values, encode_e8m0(scales) if transport == "fp8-ue8m0" else scales
    if global_scale_enc is None or global_scale_enc.numel() != 1:
        raise ValueError("dispatch: global_scale_enc must hold one value: senders quantize for every rank")
    quantized = quantize_nvfp4(x, global_scale_enc)
    return pack_e2m1(quantized.codes), quantized.block_scale


def _places(topk_idx: list[Tensor], experts: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what fills each row of each expert, ranks and their tokens in order.

    Returns:
        source `(experts, capacity, 2)`, the rank and the token of a row; position `(experts, capacity)`, the token's
        place among the tokens of all ranks; both -1 where nothing came. Counts `(experts,)` int32.
    """
    device = topk_idx[0].device
    rank = torch.cat([torch.full((len(ids),), r, device=device) for r, ids in enumerate(topk_idx)])
    token = torch.cat([torch.arange(len(ids), device=device) for ids in topk_idx])
    routed = torch.zeros((len(token), experts + 1), dtype=torch.bool, device=device)
    routed.scatter_(1, torch.cat(topk_idx) + 1, value=True)  # column 0 takes the slots without an expert
    expert, sent = routed[:, 1:].T.nonzero(as_tuple=True)
    counts = routed[:, 1:].sum(0)
    row = torch.arange(len(expert), device=device) - (counts.cumsum(0) - counts)[expert]
    source = torch.full((experts, capacity, 2), -1, dtype=torch.int64, device=device)
    position = torch.full((experts, capacity), -1, dtype=torch.int64, device=device)
    source[expert, row] = torch.stack((rank[sent], token[sent]), dim=1)
    position[expert, row] = sent
    return source, position, counts.to(torch.int32)


def _gather(sent: Tensor, position: Tensor) -> Tensor:
    """Return the rows at the given places, `(local experts, capacity, width)`; where it is -1, NaN or 0xFF."""
    poison = torch.nan if sent.dtype.is_floating_point else 0xFF
    rows = torch.full((*position.shape, sent.shape[1]), poison, device=sent.device).to(sent.dtype)
    as_bytes = torch.uint8 if sent.dtype.itemsize == 1 else sent.dtype  # float8 cannot be indexed everywhere
    filled = position >= 0
    rows.view(as_bytes)[filled] = sent.view(as_bytes)[position[filled]]
    return rows


def combine(
    y: list[Tensor],
    dispatched: list[Dispatched],
    topk_idx: list[Tensor],
    topk_weights: list[Tensor],
    *,
    transport: str = "bf16",
    fused: bool = False,
) -> list[Tensor]:
    """Bring the experts' rows back and sum them with the routing weights.

    Args:
        y: per rank `(local experts, capacity, hidden)` bfloat16, the experts' outputs.
        dispatched: what `dispatch` returned: it knows where each row came from.
        topk_idx: per rank `(tokens, topk)` int64.
        topk_weights: per rank `(tokens, topk)` float32.
        transport: of COMBINE_TRANSPORTS; "logfmt" needs a hidden size that is a multiple of 128.
        fused: multiply and add with one rounding, as compilers contract it to FMA; else the product is rounded as well.

    Returns:
        Per rank `(tokens, hidden)` of y's dtype: the float32 sum over slots 0, 1, ... of weight * row, rounded once. A
        token without any expert gives zeros; one whose row never arrived at an expert gives NaN.

    Raises:
        ValueError: an unknown transport, a hidden size that it does not take.

    Rules: COMBINE-1, COMBINE-2, COMBINE-3.
    """
    rows, places = rows_back(y, dispatched, topk_idx)
    rows = returned_rows(rows, transport)
    out = []
    for ids, weights, place in zip(topk_idx, topk_weights, places, strict=True):
        total = torch.zeros((len(ids), rows.shape[1]), dtype=torch.float32, device=ids.device)
        for slot in range(ids.shape[1]):
            row, weight = rows[place[:, slot]], weights[:, slot, None]
            if fused:
                # The product is exact in float64, and its sum is rounded there 2^29 times finer than in float32.
                added = (total.double() + weight.double() * row.double()).float()
            else:
                added = total + weight * row.float()
            total = torch.where(ids[:, slot, None] == NO_EXPERT, total, added)
        out.append(total.to(y[0].dtype))
    return out


def returned_rows(rows: Tensor, transport: str) -> Tensor:
    """Return rows of the experts as a combine by `transport` adds them. Raises ValueError as `combine`."""
    if transport not in COMBINE_TRANSPORTS:
        raise ValueError(
            f"combine: transport must be one of {', '.join(COMBINE_TRANSPORTS)}, got {transport!r}"
        )
    return rows if transport == "bf16" else decode_logfmt(encode_logfmt(rows))


def rows_back(
    y: list[Tensor], dispatched: list[Dispatched], topk_idx: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the experts' rows, and which of them each slot of each token gets.

    Args:
        y: per rank, as `combine` takes it; likewise the others.
        dispatched: where each row came from.
        topk_idx: experts of each token.

    Returns:
        `(rows, hidden)`, the last row NaN, and per rank `(tokens, topk)` int64: that last row where none arrived. Slots without
        an expert have some row.
    """
    local, hidden = y[0].shape[0], y[0].shape[2]
    arrived = [d.source[..., 0] >= 0 for d in dispatched]
    nowhere = torch.full((1, hidden), torch.nan, dtype=y[0].dtype, device=y[0].device)
    rows = torch.cat([*(part[here] for part, here in zip(y, arrived, strict=True)), nowhere])
    source = torch.cat([d.source[here] for d, here in zip(dispatched, arrived, strict=True)])
    expert = torch.cat([here.nonzero()[:, 0] + owner * local for owner, here in enumerate(arrived)])
    places = []
    for rank, ids in enumerate(topk_idx):
        place = torch.full((local * len(y), len(ids)), len(rows) - 1, device=ids.device)
        mine = (source[:, 0] == rank).nonzero().flatten()
        place[expert[mine], source[mine, 1]] = mine
        token = torch.arange(len(ids), device=ids.device).unsqueeze(-1)
        places.append(place[ids.clamp(min=0), token])
    return rows, places

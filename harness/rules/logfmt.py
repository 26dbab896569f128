"""What COMBINE says of rows that come back in LogFMT: the sum lies between what the rows may have arrived as."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare
from harness.judging.context import Context
from harness.judging.layer_contract import checked_combined
from harness.problems.layer import LayerProblem
from harness.problems.rows import Rows
from reference.legal_combine import legal_logfmt_combine
from reference.logfmt import CHANNELS, chunk_of
from reference.routing import Dispatched

_ALL = slice(None)
_KINDS = 4


def judge_logfmt(
    ctx: Context, layer: LayerProblem, y: list[Tensor], dispatched: list[Dispatched]
) -> Comparison:
    """Judge one combine by "logfmt" of rows that are smaller than those drawn, so that most chunks are coded.

    Args:
        ctx: whose candidate combines.
        layer: the problem.
        y: per rank the experts' outputs as they are combined by "bf16".
        dispatched: where they go.
    """
    y = [_spread(rows, layer) for rows in y]
    ids, weights = layer.topk_idx, layer.topk_weights
    got = ctx.calls.combine(y, dispatched, ids, weights, transport="logfmt")
    values = torch.cat(checked_combined(got, [(len(i), layer.dispatch_hidden) for i in ids], layer.device))
    return judge_logfmt_combined(values, layer.token_rows(), y, dispatched, ids, weights)


def judge_logfmt_combined(
    values: Tensor,
    rows: Rows,
    y: list[Tensor],
    dispatched: list[Dispatched],
    ids: list[Tensor],
    weights: list[Tensor],
    kept: Tensor | None = None,
) -> Comparison:
    """Judge the weighted sums of rows that came back in LogFMT; arguments as judge_combined of harness.rules.routing takes them."""
    every = _ALL if kept is None else kept
    low, high = (
        torch.cat(ends)[every]
        for ends in zip(*legal_logfmt_combine(y, dispatched, ids, weights), strict=True)
    )

    def accepts(values: Tensor, part: slice = _ALL) -> Tensor:
        inside = (values >= low[part]) & (values <= high[part])
        return inside | (values.isnan() & low[part].isnan())

    more = int((low < high).sum())
    return compare(
        "combine.logfmt",
        accepts(values),
        rows,
        judged={"one legal value": values.numel() - more, "within what LogFMT leaves open": more},
        altered=altered_copies(values, accepts),
        show=lambda r, c: (
            f"= {float(values[r, c]):.9g}, legal is {float(low[r, c]):.9g} to {float(high[r, c]):.9g}: the float32 sum "
            "over slots of the rows in LogFMT, rounded once"
        ),
    )


def _spread(y: Tensor, layer: LayerProblem) -> Tensor:
    """Return rows of four kinds, each block of channels with a magnitude of its own.

    As drawn, which is too large to be coded; small; small with zeros and magnitudes far below the others; small but for one
    chunk, which has a one or a block of equal numbers and so is not coded.
    """
    draws = layer.draws("logfmt")
    experts, rows, hidden = y.shape
    blocks = hidden // CHANNELS
    kind = (torch.arange(experts).unsqueeze(-1) + torch.arange(rows)) % _KINDS
    kind = kind.unsqueeze(-1).to(y.device)
    octaves = draws.integers(0, 12, experts, rows, blocks).repeat_interleave(CHANNELS, -1).to(y.device)
    small = y.float() * torch.exp2(-6.0 - octaves)
    far = small * torch.exp2(-40 * draws.uniform(*y.shape).to(y.device))
    far = far.masked_fill(draws.uniform(*y.shape).to(y.device) < 1 / CHANNELS, 0)
    plain = small.clone()
    first = slice(0, chunk_of(hidden), chunk_of(hidden))
    plain[:, 0::2, first] = 1
    plain[:, 1::2, :CHANNELS] = small[:, 1::2, first]
    made = torch.where(kind == 1, small, torch.where(kind == 2, far, plain))
    return torch.where(kind == 0, y, torch.where(y.isnan(), y, made.to(y.dtype)))

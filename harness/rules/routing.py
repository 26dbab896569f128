"""ROUTE, COMBINE: which experts a token goes to and with which weight, and the weighted sum of what comes back."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare
from harness.judging.context import Context
from harness.judging.contract import checked
from harness.judging.layer_contract import (
    checked_buffers,
    checked_combined,
    checked_routes,
    checked_sources,
)
from harness.problems.layer import LayerProblem
from harness.problems.route_values import IN_OUTPUTS
from harness.problems.rows import Rows
from harness.rules.logfmt import judge_logfmt
from reference import routing
from reference.routing import Dispatched

_ALL = slice(None)


def route(ctx: Context) -> list[Comparison]:
    """ROUTE: route_topk on drawn logits, with weights normalized and not."""
    layer = ctx.layer
    logits, rows = torch.cat(layer.logits), layer.token_rows()
    found = []
    for normalize in (True, False):
        result = ctx.calls.route_topk(logits, layer.topk, normalize=normalize)
        ids, weights = checked_routes(result, (len(logits), layer.topk), layer.device)
        found.append(_judge_ids("route.ids", logits, ids, rows))
        name = "route.weights" if normalize else "route.weights (not normalized)"
        found.append(_judge_weights(name, logits, ids, weights, rows, normalize=normalize))
    return found + _judge_slots(ctx, layer, ids, rows)


def _judge_slots(ctx: Context, layer: LayerProblem, ids: Tensor, rows: Rows) -> list[Comparison]:
    """Judge to which slots tokens go where some experts are there twice, on every rank: each slot holds its expert."""
    place = getattr(ctx.calls, "place_topk", None)
    if place is None or layer.ranks == 1:
        return []
    twice = random.Random(f"slots {layer.problem.seed}").choices(range(layer.experts), k=layer.ranks)
    places = [*range(layer.experts), *twice]
    found = []
    for rank in range(layer.ranks):
        for way, given in place(ids, places, rank, layer.ranks).items():
            slots = checked(given, "place_topk", way, tuple(ids.shape), torch.int64, layer.device)
            found.append(_of_slots(f"route.slots ({way}, rank {rank})", slots, ids, places, rows))
    return found


def _of_slots(stage: str, slots: Tensor, ids: Tensor, places: list[int], rows: Rows) -> Comparison:
    held = torch.tensor(places, device=ids.device)

    def accepts(slots: Tensor, part: slice = _ALL) -> Tensor:
        inside = (slots >= 0) & (slots < len(places))
        return inside & (held[slots.clamp(0, len(places) - 1)] == ids[part])

    # Numbered from one for the altered copies: slot 0 is no zero.
    altered = altered_copies(slots + 1, lambda numbers, part: accepts(numbers - 1, part))
    if ids.shape[1] == len(set(places)):
        del altered["rolled rows"]  # every token goes to every expert
    return compare(
        stage,
        accepts(slots),
        rows,
        judged={"a slot that holds the expert": slots.numel()},
        altered=altered,
        show=lambda r, c: (
            f"= slot {int(slots[r, c])} for expert {int(ids[r, c])}; slots hold the experts {places[:16]}"
        ),
    )


def _logit_freedom(logits: Tensor) -> Tensor:
    """Return how far the softmax numerator of each logit may be off, relative, in float32: docs/bounds.md, "Routing"."""
    below = logits.double().amax(-1, keepdim=True) - logits.double()
    return (3 + 1.7 * below) * 2.0**-23


def _judge_ids(stage: str, logits: Tensor, ids: Tensor, rows: Rows) -> Comparison:
    """Legal are distinct experts such that no expert that was left out has a larger logit, ties either way."""
    freedom, exact = _logit_freedom(logits), logits.double()
    experts = logits.shape[1]

    def accepts(ids: Tensor, part: slice = _ALL) -> Tensor:
        inside = (ids >= 0) & (ids < experts)
        safe = ids.clamp(0, experts - 1)
        chosen = torch.zeros_like(exact[part], dtype=torch.bool).scatter_(1, safe, value=True)
        reach = (exact - freedom)[part].masked_fill(chosen, -torch.inf).amax(-1, keepdim=True)
        largest = (exact + freedom)[part].gather(1, safe) >= reach
        repeated = (ids.unsqueeze(-1) == ids.unsqueeze(-2)).tril(-1).any(-1)
        return inside & largest & ~repeated

    def show(r: int, c: int) -> str:
        best = exact[r].sort(descending=True).values[: ids.shape[1]].tolist()
        value = int(ids[r, c])
        logit = f"logit {float(exact[r, value]):.6g}" if 0 <= value < experts else "no such expert"
        return f"= {value} ({logit}) among {ids[r].tolist()}; the largest logits are {[round(b, 4) for b in best]}"

    # Numbered from one for the altered copies: expert 0 is no zero.
    altered = altered_copies(ids + 1, lambda numbers, part: accepts(numbers - 1, part))
    if ids.shape[1] == experts:
        del altered["rolled rows"]  # every token goes to every expert: its slots suit every other token
    return compare(
        stage,
        accepts(ids),
        rows,
        judged={"among the largest logits, ties either way": ids.numel()},
        altered=altered,
        show=show,
    )


def _judge_weights(
    stage: str, logits: Tensor, ids: Tensor, weights: Tensor, rows: Rows, *, normalize: bool
) -> Comparison:
    """Legal are the softmax weights of the chosen experts, within float32's rounding of the sum and the quotients."""
    softmax = torch.softmax(logits.double(), dim=-1)
    freedom = _logit_freedom(logits)
    safe = ids.clamp(0, logits.shape[1] - 1)
    wanted = softmax.gather(1, safe)
    if normalize:
        wanted = wanted / wanted.sum(-1, keepdim=True)
    terms = logits.shape[1] + ids.shape[1] + 4
    of_sum = (softmax * freedom).sum(-1, keepdim=True)
    if normalize:
        of_sum = of_sum + (wanted * freedom.gather(1, safe)).sum(-1, keepdim=True)
    bound = wanted * (freedom.gather(1, safe) + of_sum + terms * 2.0**-24)

    def accepts(values: Tensor, part: slice = _ALL) -> Tensor:
        return (values.double() - wanted[part]).abs() <= bound[part]

    altered = altered_copies(weights, accepts)
    if logits.shape[1] == 1 or (normalize and ids.shape[1] == 1):
        del altered["rolled rows"]  # every weight is 1
    return compare(
        stage,
        accepts(weights),
        rows,
        judged={"softmax within float32's rounding": weights.numel()},
        altered=altered,
        show=lambda r, c: (
            f"= {float(weights[r, c]):.9g}, legal is {float(wanted[r, c]):.9g} +- {float(bound[r, c]):.2g} "
            f"(expert {int(ids[r, c])}, {'normalized over the chosen' if normalize else 'softmax over all'})"
        ),
        ratio=(weights.double() - wanted).abs() / bound,
    )


def combine(ctx: Context) -> list[Comparison]:
    """COMBINE: rows of drawn numbers, dispatched by the candidate where it can, brought back and summed."""
    layer = ctx.layer
    ids, weights, rows = layer.topk_idx, layer.topk_weights, layer.token_rows()
    sender = ctx.calls.dispatch if ctx.has("dispatch") else routing.dispatch
    dispatched = checked_buffers(
        sender(layer.tokens(layer.dispatch_hidden), ids, layer.experts, layer.max_tokens), layer, "bf16",
        ranks=layer.ranks, capacity=layer.ranks * layer.max_tokens, hidden=layer.dispatch_hidden,
    )  # fmt: skip
    checked_sources(dispatched, layer.counts)
    y = _drawn_outputs(layer, dispatched)
    got = ctx.calls.combine(y, dispatched, ids, weights)
    shapes = [(len(i), layer.dispatch_hidden) for i in ids]
    values = torch.cat(checked_combined(got, shapes, layer.device))
    found = [judge_combined(values, rows, y, dispatched, ids, weights)]
    if "logfmt" in ctx.traits.combine_transports:
        found.append(judge_logfmt(ctx, layer, y, dispatched))
    return found


def judge_combined(
    values: Tensor,
    rows: Rows,
    y: list[Tensor],
    dispatched: list[Dispatched],
    ids: list[Tensor],
    weights: list[Tensor],
    kept: Tensor | None = None,
) -> Comparison:
    """Judge the weighted sums of what experts returned.

    Args:
        values: `(rows, hidden)`, the tokens of all ranks, one rank after the other.
        rows: where each comes from.
        y: per rank `(local experts, capacity, hidden)`.
        dispatched: per rank, of which `source` is read.
        ids: per rank `(tokens, topk)`.
        weights: of them.
        kept: which of all tokens are judged, `(tokens,)` bool, where `values` are those only; None for all.
    """
    every = slice(None) if kept is None else kept
    wanted = [
        torch.cat(routing.combine(y, dispatched, ids, weights, fused=fused))[every] for fused in (False, True)
    ]

    def accepts(values: Tensor, part: slice = _ALL) -> Tensor:
        equal = [(values == w[part]) | (values.isnan() & w[part].isnan()) for w in wanted]
        return equal[0] | equal[1]

    two = int((wanted[0] != wanted[1]).sum())
    return compare(
        "combine",
        accepts(values),
        rows,
        judged={"equal bit for bit": values.numel() - two, "with or without fused multiply-add": two},
        altered=altered_copies(values, accepts),
        show=lambda r, c: (
            f"= {float(values[r, c]):.9g}, legal is {float(wanted[0][r, c]):.9g}: the float32 sum over slots, rounded once"
        ),
    )


def _drawn_outputs(layer: LayerProblem, dispatched: list[Dispatched]) -> list[Tensor]:
    """Return the experts' outputs: each expert has its own magnitude, padding rows are NaN."""
    draws, found = layer.draws("outputs"), []
    for rank, got in enumerate(dispatched):
        y = draws.normal(*got.x.shape[:2], layer.dispatch_hidden)
        local = got.x.shape[0]
        expert = torch.arange(rank * local, (rank + 1) * local, device=y.device)
        y = (y * (1 + expert % 5).view(-1, 1, 1)).bfloat16()
        for trap in IN_OUTPUTS:
            if trap in layer.problem.extras:
                y = IN_OUTPUTS[trap](y, draws)
        padding = torch.arange(got.x.shape[1], device=y.device) >= got.masked_m.to(y.device).unsqueeze(-1)
        y[padding] = torch.nan
        found.append(y.to(layer.device))
    return found

"""A routed layer in the rules about every stage: what a change that must not matter does to its output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import STAGES
from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.lending import copied
from harness.judging.poisons import named_unwritten, poisoned_allocations
from harness.judging.routed import arguments, call, judge
from harness.rules import NotApplicableError
from harness.rules.refusals import REFUSALS, refused
from reference.e4m3 import take

_NAME = "routed layer"
_WEIGHTS = ("w1", "w1_blockscale", "w1_alpha", "w2", "a2_global_scale", "w2_blockscale", "w2_alpha")


def _agree(ctx: Context, changed: Tensor, plain: Tensor, what: str, name: str = _NAME) -> Comparison:
    """Compare the layer with itself before a change: bit for bit, or, of sums in any order, whether it is legal."""
    if not bool(ctx.routed.routes.there.any()):
        return Comparison(name)  # nothing but zeros: ROUTED judges them
    if ctx.traits.sums_in_order:
        return compare_equal(name, changed, plain, ctx.routed.token_rows(), what)
    return judge(ctx, changed, arguments(ctx), name)


def _varies(ctx: Context, orders: tuple[str, ...] = ("any",)) -> bool:
    """Return whether a call adds otherwise than another one, by the declared order, so that bits are not compared.

    Raises:
        NotApplicableError: it does, and the candidate has no other stage.
    """
    varies = ctx.routed.way.order in orders
    if varies and not any(map(ctx.has, STAGES)):
        raise NotApplicableError(
            f"the candidate declares the final sum {ctx.traits.final_sum!r}: bits may differ"
        )
    return varies


def empty_slots(ctx: Context, poison: float) -> list[Comparison]:
    """PAD-ROWS: what the weights of slots without an expert here are changes nothing."""
    empty, given = ~ctx.routed.routes.there, arguments(ctx)
    clean, dirty = (
        call(ctx, given | {"topk_weights": given["topk_weights"].masked_fill(empty, fill)})
        for fill in (0.0, poison)
    )
    return [_agree(ctx, dirty, clean, f"slots without an expert here have the weight {poison} instead of 0")]


def outputs(ctx: Context) -> list[Comparison]:
    """PAD-OUT: what the output held, and what fresh allocations hold, changes nothing."""
    given, found = arguments(ctx), []
    if not ctx.routed.way.onto:
        nan, other = (call(ctx, arguments(ctx, fill=fill)) for fill in (torch.nan, 13.0))
        same = _agree(ctx, nan, other, "the output held NaN instead of 13")
        found += named_unwritten([same], nan)
    fresh = given | {"out": None}
    torch.full(
        (ctx.routed.tokens * ctx.problem.hidden * 2,), 0x55, dtype=torch.uint8, device=ctx.traits.device
    )
    clean = call(ctx, fresh)
    with poisoned_allocations(ctx.traits.device):
        dirty = call(ctx, fresh)
    name, what = f"{_NAME}, no output given", "fresh allocations hold NaN patterns instead of leftovers"
    if ctx.traits.sums_in_order:
        return found + named_unwritten([_agree(ctx, dirty, clean, what, name)], dirty)
    zeros = given | {"out": torch.zeros_like(given["out"])}
    return found + named_unwritten([judge(ctx, dirty, zeros, name)], dirty)


def experts_moved(ctx: Context, order: Tensor, what: str) -> list[Comparison]:
    """EXPERTS: with the experts in another order, and ids that follow them, every token is what it was."""
    r = ctx.routed
    if _varies(ctx, ("experts", "any")):
        return []
    given = arguments(ctx)
    now_at = torch.argsort(order)[(r.topk_idx.long() - r.offset).clamp(0, r.local - 1)] + r.offset
    moved: dict[str, Any] = {name: take(given[name], order).contiguous() for name in _WEIGHTS}
    moved["topk_idx"] = torch.where(r.routes.there, now_at, r.topk_idx.long()).int()
    return [_agree(ctx, call(ctx, given | moved), call(ctx, given), what)]


def tokens_moved(ctx: Context) -> list[Comparison]:
    """TOKENS: with the tokens in reverse order, each one's output moves with it."""
    if _varies(ctx):
        return []
    given = arguments(ctx, prequantized=False)
    moved = {name: given[name].flip(0) for name in ("topk_idx", "topk_weights", "out")}
    moved["hidden_states"] = (given["hidden_states"][0].flip(0), None)
    got = call(ctx, given | moved).flip(0)
    return [_agree(ctx, got, call(ctx, given), "the tokens are in reverse order")]


def repeated(ctx: Context) -> list[Comparison]:
    """REPEAT: twice on the same buffers, then on other data in them, which must give what new buffers give."""
    if _varies(ctx):
        return []
    first = arguments(ctx, prequantized=False)
    second = first | {name: first[name].flip(0) for name in ("topk_idx", "topk_weights")}
    buffers = copied(first)

    def run(values: dict[str, Any]) -> Tensor:
        for name in ("topk_idx", "topk_weights", "out"):
            buffers[name].copy_(values[name])
        return call(ctx, buffers, ctx.candidate).clone()

    once, again = run(first), run(first)
    what = "the second of two identical calls"
    found = [_agree(ctx, again, once, what)]
    reused, fresh = run(second), call(ctx, copied(second), ctx.candidate)
    what = "the same data in new buffers; these held other data in an earlier call"
    return [*found, _agree(ctx, reused, fresh, what, f"{_NAME}, buffers reused")]


def layouts(ctx: Context) -> list[Comparison]:
    """LAYOUT-IN: tokens, ids and weights that are slices of wider tensors, or lie the other way round."""
    given = arguments(ctx, prequantized=False)
    x = given["hidden_states"][0]
    wanted, found = call(ctx, given), []
    for name, changed in (
        ("tokens, columns of wider ones", {"hidden_states": (_of_wider(x), None)}),
        ("ids, columns of wider ones", {"topk_idx": _of_wider(given["topk_idx"])}),
        ("ids, tokens innermost", {"topk_idx": _turned(given["topk_idx"])}),
        ("weights, columns of wider ones", {"topk_weights": _of_wider(given["topk_weights"])}),
        ("weights, tokens innermost", {"topk_weights": _turned(given["topk_weights"])}),
        ("output, columns of a wider one", {"out": _of_wider(given["out"])}),
    ):
        try:
            got = call(ctx, given | changed)
        except REFUSALS as error:
            found.append(refused(f"{_NAME}, {name}", error))
            continue
        found.append(_agree(ctx, got, wanted, "the strides were ignored", f"{_NAME}, {name}"))
    return found


def _of_wider(tensor: Tensor) -> Tensor:
    """Return a `(tokens, columns)` tensor as the first columns of one that has 16 bytes more of them, all bits set."""
    columns, size = tensor.shape[1], tensor.element_size()
    shape = len(tensor), columns * size + 16
    memory = torch.full(shape, 0xFF, dtype=torch.uint8, device=tensor.device).view(tensor.dtype)
    memory[:, :columns] = tensor
    return memory[:, :columns]


def _turned(tensor: Tensor) -> Tensor:
    """Return a `(tokens, columns)` tensor whose tokens lie next to each other in memory."""
    return tensor.T.contiguous().T

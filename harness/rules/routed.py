"""ROUTED, SLOTS: a routed layer's output, whatever experts its tokens go to, and however many tokens there are."""

from __future__ import annotations

from torch import Tensor

from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.judging.routed import arguments, call
from harness.judging.routed_taps import judge_tapped, tapped
from harness.rules.refusals import REFUSALS, refused


def routed(ctx: Context) -> list[Comparison]:
    """ROUTED: the layer on drawn tokens and routes."""
    given = arguments(ctx)
    return judge_tapped(ctx, tapped(ctx, given), given)


def slots(ctx: Context) -> list[Comparison]:
    """SLOTS: no token, one token, and tokens that name an expert twice: refused, or both slots count."""
    r = ctx.routed
    there = r.routes.there
    served = there.any(-1).nonzero().flatten()
    found: list[Comparison] = []
    if len(served):
        at = ctx.problem.seed % len(served)
        one = ctx.on(r.only(served[at : at + 1]))
        given = arguments(one)
        found += judge_tapped(one, tapped(one, given), given, "routed layer, one token")
    if len(served) and there.shape[1] > 1:
        found += _twice(ctx, served)
    none = ctx.on(r.only(served[:0]))
    call(none, arguments(none))
    return found


def _twice(ctx: Context, served: Tensor) -> list[Comparison]:
    """Judge the layer with the expert of one slot of each token in the next slot too."""
    r, name = ctx.routed, "routed layer, the same expert twice"
    slot = r.routes.there[served].int().argmax(-1)
    ids = r.topk_idx.clone()
    ids[served, (slot + 1) % ids.shape[1]] = ids[served, slot]
    twice = ctx.on(r.changed(topk_idx=ids))
    given = arguments(twice)
    try:
        returned = tapped(twice, given)
    except REFUSALS as error:
        return [refused(name, error)]
    return judge_tapped(twice, returned, given, name)

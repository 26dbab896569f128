"""One call of routed_moe: its arguments, and its output against what legal rows, added in a legal order, can come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.layouts import Pair
from harness.judging.comparison import Comparison, accepted, altered_copies, compare
from harness.judging.context import Context
from harness.judging.contract import checked
from harness.problems.routed import RoutedProblem
from harness.problems.weights import Weights
from reference import propagate
from reference.e2m1 import pack_e2m1
from reference.formats import Coded
from reference.intervals import Interval
from reference.propagate import Added
from reference.routed_sum import RoutedSum


def arguments(ctx: Context, *, prequantized: bool | None = None, fill: float | None = None) -> dict[str, Any]:
    """Return the keyword arguments of routed_moe for a problem.

    Args:
        ctx: the problem.
        prequantized: hand over quantized tokens; None: as the problem says.
        fill: what the output holds before the call, unless the sum begins with that; None for NaN.
    """
    r = ctx.routed
    prequantized = "prequantized" in ctx.problem.extras if prequantized is None else prequantized
    return {
        "hidden_states": _pair(ctx, r.quantized) if prequantized else (r.x, None),
        "topk_idx": r.topk_idx,
        "topk_weights": r.topk_weights,
        "input_global_scale": None if prequantized else r.input_scale,
        "w1": pack_e2m1(r.w1.codes),
        "w1_blockscale": layouts.weight_scales(r.w1.form, r.w1.block_scale),
        "w1_alpha": r.w1_alpha,
        "w2": pack_e2m1(r.w2.codes),
        "a2_global_scale": r.a2_scale,
        "w2_blockscale": layouts.weight_scales(r.w2.form, r.w2.block_scale),
        "w2_alpha": r.w2_alpha,
        "num_experts": r.total_experts,
        "local_expert_offset": r.offset,
        "out": r.held_before(fill),
        "activation": ctx.activation,
    }


def _pair(ctx: Context, coded: Coded) -> Pair:
    """Return quantized tokens as routed_moe takes them: packed codes, and linear scales."""
    form = ctx.form
    codes = pack_e2m1(coded.codes) if form.element == "e2m1" else coded.codes
    if form.rows:
        return codes, coded.row_scale
    return codes, coded.block_scale.view(torch.float8_e4m3fn) if form.scale == "e4m3" else coded.block_scale


def call(ctx: Context, given: dict[str, Any], candidate: Any = None) -> Tensor:
    """Call routed_moe and check what comes back: `(tokens, hidden)`.

    Args:
        ctx: the problem.
        given: keyword arguments.
        candidate: whose stage it is; None for the context's, which gets copies.
    """
    out = (ctx.calls if candidate is None else candidate).routed_moe(**given)
    shape = len(given["topk_idx"]), ctx.problem.hidden
    return checked(
        out, "routed_moe", "", shape, ctx.routed.layer_dtype, ctx.traits.device, "(tokens, hidden)"
    )


@dataclass(frozen=True)
class LegalRouted:
    """What routed_moe may return for a call.

    Attributes:
        low: `(tokens, hidden)` float64, the smallest.
        high: the largest; NaN in either where NaN is legal and nothing else.
    """

    low: Tensor
    high: Tensor

    def accepts(self, out: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return which elements are legal."""
        low, high, values = self.low[rows], self.high[rows], out.double()
        return torch.where(low.isnan() | high.isnan(), values.isnan(), (values >= low) & (values <= high))


def legal(ctx: Context, given: dict[str, Any]) -> LegalRouted:
    """Return the legal outputs of a call on a problem's own weights."""
    r = ctx.routed
    added = Added(ctx.known.accumulator, ctx.known.summation, (ctx.form, r.w1.form))
    rows = _legal_rows(ctx, r, given, added)
    low, high = (r.routes.spread(end.to(r.layer_dtype)) for end in (rows.low, rows.high))
    total = RoutedSum(r.way, r.topk_weights, r.topk_idx, r.routes.there, given["out"]).legal(low, high)
    return LegalRouted(total.low, total.high)


def _legal_rows(ctx: Context, r: RoutedProblem, given: dict[str, Any], added: Added) -> Interval:
    """Return what the experts may make of their rows, `(rows, hidden)`, expert after expert."""
    routes = r.routes
    weight = r.topk_weights[routes.token, routes.slot].unsqueeze(-1)
    quantized = given["hidden_states"][1] is not None or ctx.form.plain
    scale = None
    if not len(routes.token):
        nothing = torch.zeros(0, ctx.problem.hidden, dtype=torch.float64, device=r.device)
        return Interval(nothing, nothing)
    if quantized and r.way.weight != "tokens":
        coded = r.quantized.map(lambda part: part[routes.token])
        source = ctx.form.values(coded, torch.float64)
        if coded.row_scale is not None:
            source *= coded.row_scale
        elif ctx.form.scale != "float32":
            scale = ctx.form.scales(coded.block_scale)
    else:
        source = r.x[routes.token].double()
        if r.way.weight == "tokens":
            source = (source.float() * weight).to(r.layer_dtype).double()
    input_scale = None if quantized else r.input_scale.expand(r.local)
    return propagate.masked_moe(
        Interval(source, source, scale), routes.counts, r.w1.values, r.w2.values,
        (r.w1_alpha, input_scale, r.a2_scale, r.w2_alpha), ctx.activation, ctx.known.arithmetic, added,
        ctx.known.unrounded, (_decoded_scales(r.w1), _decoded_scales(r.w2)), None, (r.way.weight, weight),
    )  # fmt: skip


def _decoded_scales(weights: Weights) -> Tensor:
    return weights.form.scales(weights.block_scale)


def judge(ctx: Context, out: Tensor, given: dict[str, Any], name: str = "routed layer") -> Comparison:
    """Judge an output: every element must be what legal rows, added in a legal order, can come to."""
    r = ctx.routed
    rows = r.token_rows()
    if not len(rows):
        return Comparison(name)
    allowed = legal(ctx, given)
    accepts = allowed.accepts
    low, high = allowed.low, allowed.high
    altered = altered_copies(out, accepts) | {
        "x1.1": lambda: accepted(accepts, (out.double() * 1.1).to(out.dtype))
    }
    served = r.routes.there.any(-1).nonzero().flatten()  # the others' rows are all alike
    altered = altered if len(served) else {}
    if len(served) > 1:
        swapped = out.clone()
        swapped[served[[0, -1]]] = out[served[[-1, 0]]]
        altered["two swapped rows"] = lambda: accepted(accepts, swapped)
    result = accepts(out)
    single = low == high
    center, radius = (low + high) / 2, ((high - low) / 2).clamp(min=1e-300)
    ratio = (out.double() - center).abs() / radius
    return compare(
        name,
        result,
        rows,
        judged=_how_judged(ctx, single),
        altered=altered,
        show=lambda row, c: (
            f"= {float(out[row, c]):.8g}, legal are {float(low[row, c]):.8g} to {float(high[row, c]):.8g} "
            f"(experts {r.topk_idx[row].tolist()})"
        ),
        ratio=torch.where(result, ratio.nan_to_num(0.0).clamp(max=1.0), ratio.nan_to_num(torch.inf)),
    )


def _how_judged(ctx: Context, single: Tensor) -> dict[str, int]:
    known = f", sums by {ctx.known.summation}" if ctx.known.summation else ""
    how = f"{ctx.known.arithmetic.describe_codes()}{known}; final sum {ctx.traits.final_sum}"
    return {f"one value, {how}": int(single.sum()), f"bound {how}": int((~single).sum())}

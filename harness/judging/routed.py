"""One call of routed_moe: its arguments, and its output against what legal rows, added in a legal order, can come to."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.layouts import Pair
from harness.judging.comparison import Comparison, accepted, altered_copies, compare
from harness.judging.context import Context
from harness.judging.contract import checked
from harness.problems.rows import Rows
from reference.bounds import Accumulator
from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.final_sum import FinalSum
from reference.formats import FORMATS, Coded, Format
from reference.intervals import Interval
from reference.layer_range import Experts
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from reference.propagate import Added
from reference.routed import Routes, routes_of
from reference.routed_sum import RoutedSum

Matrix = tuple[Tensor, Tensor]
"""Weights `(l, n, k)`, codes times block scales, and their decoded block scales `(l, n, k / block)`."""


def arguments(ctx: Context, *, prequantized: bool | None = None, fill: float | None = None) -> dict[str, Any]:
    """Return the keyword arguments of routed_moe for a problem.

    Args:
        ctx: the problem.
        prequantized: hand over quantized tokens; None: as the problem says.
        fill: what the output holds before the call, unless the sum begins with that; None for NaN.
    """
    r = ctx.routed
    (w1, w1_blockscale), (w2, w2_blockscale) = r.w1.for_layer(), r.w2.for_layer()
    prequantized = "prequantized" in ctx.problem.extras if prequantized is None else prequantized
    return {
        "hidden_states": _pair(ctx, r.quantized) if prequantized else (r.x, None),
        "topk_idx": r.topk_idx,
        "topk_weights": r.topk_weights,
        "input_global_scale": None if prequantized else r.input_scale,
        "w1": w1,
        "w1_blockscale": w1_blockscale,
        "w1_alpha": r.w1_alpha,
        "w2": w2,
        "a2_global_scale": r.a2_scale,
        "w2_blockscale": w2_blockscale,
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
    return checked_output(ctx, (ctx.calls if candidate is None else candidate).routed_moe(**given), given)


def checked_output(ctx: Context, out: Any, given: dict[str, Any]) -> Tensor:
    """Return what routed_moe returned for a call, or raise ContractError."""
    shape = len(given["topk_idx"]), ctx.problem.hidden
    return checked(
        out, "routed_moe", "", shape, ctx.routed.layer_dtype, ctx.traits.device, "(tokens, hidden)"
    )


@dataclass(frozen=True)
class Computed:
    """How a routed layer computes, as it is judged.

    Attributes:
        forms: formats of activations and weights.
        way: order and roundings of its final sum.
        arithmetic: of its quantizers.
        accumulator: what is measured or assumed of it.
        summation: of its GEMMs, bit for bit, or None.
        unrounded: values that stay float32, as Traits.unrounded names them.
        second: of the second GEMM, where it is not that of the first.
        rounded: values that may be rounded where the path does not: reference.layer_range.Experts.
    """

    forms: tuple[Format, Format]
    way: FinalSum
    arithmetic: Arithmetic
    accumulator: Accumulator
    summation: Summation | None = None
    unrounded: Collection[str] = ()
    second: Accumulator | None = None
    rounded: Collection[str] = ()


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


def legal(given: dict[str, Any], how: Computed, matrices: tuple[Matrix, Matrix] | None = None) -> LegalRouted:
    """Return the legal outputs of a call.

    Args:
        given: arguments of routed_moe by name.
        how: the candidate computes.
        matrices: of w1 and w2 what is multiplied and their decoded scales, where the caller has them.
    """
    routes = routes_of(given["topk_idx"], len(given["w1"]), given.get("local_expert_offset", 0))
    own = how.forms[0].layer_dtype
    rows = _legal_rows(given, how, routes, matrices or _decoded(given, how.forms[1]))
    return summed(given, how, routes, rows.low.to(own), rows.high.to(own))


def summed(given: dict[str, Any], how: Computed, routes: Routes, low: Tensor, high: Tensor) -> LegalRouted:
    """Return what the final sum of a call may come to.

    Args:
        given: arguments of routed_moe by name.
        how: the candidate computes.
        routes: rows of the call.
        low: `(rows, hidden)` of the layer's type, expert after expert, the smallest that each row may be.
        high: the largest.
    """
    held, ids = given.get("out"), given["topk_idx"]
    if held is None:
        held = torch.zeros(len(ids), low.shape[1], dtype=low.dtype, device=ids.device)
    final = RoutedSum(how.way, given["topk_weights"], ids, routes.there, held)
    total = final.legal(routes.spread(low), routes.spread(high))
    return LegalRouted(total.low, total.high)


def _decoded(given: dict[str, Any], form: Format) -> tuple[Matrix, Matrix]:
    first, second = (
        layouts.loaded(
            form,
            (given[name].permute(1, 2, 0), layouts.as_mma(given[f"{name}_blockscale"].view(torch.uint8))),
        )
        for name in ("w1", "w2")
    )
    return (form.values(first), form.scales(first.block_scale)), (
        form.values(second),
        form.scales(second.block_scale),
    )


def _legal_rows(
    given: dict[str, Any], how: Computed, routes: Routes, matrices: tuple[Matrix, Matrix]
) -> Interval:
    """Return what the experts may make of their rows, `(rows, hidden)`, expert after expert."""
    if not len(routes.token):
        w2 = matrices[1][0]
        nothing = torch.zeros(0, w2.shape[1], dtype=torch.float64, device=w2.device)
        return Interval(nothing, nothing)
    experts, tokens = experts_of(given, how, routes, matrices)
    return experts.rows(experts.gate_up(tokens))


def experts_of(
    given: dict[str, Any], how: Computed, routes: Routes, matrices: tuple[Matrix, Matrix]
) -> tuple[Experts, Interval]:
    """Return the layer that the rows of a call go through, and these rows' tokens, expert after expert."""
    (w1, w1_scales), (w2, w2_scales) = matrices
    form, (x, scale) = how.forms[0], given["hidden_states"]
    weight = given["topk_weights"][routes.token, routes.slot].unsqueeze(-1)
    taken, x_scales = scale is not None or form.plain, None
    if scale is not None:
        coded = coded_tokens(form, x, scale).map(lambda part: part[routes.token])
        source = form.values(coded, torch.float64)
        if coded.row_scale is not None:
            source *= coded.row_scale
        elif form.scale != "float32":
            x_scales = form.scales(coded.block_scale)
    else:
        tokens = x[routes.token]
        if how.way.weight == "tokens":
            tokens = (tokens.float() * weight).to(tokens.dtype)
        source = tokens.double()
        x_scales = source.new_zeros((len(source), 0)) if form.plain else None
    local = len(given["w1"])
    scales = given["w1_alpha"], None if taken else given["input_global_scale"].expand(local)
    added = Added(how.accumulator, how.summation, how.forms)
    experts = Experts(
        routes.counts, w1, w2, (*scales, given["a2_global_scale"], given["w2_alpha"]),
        given.get("activation", "silu"), how.arithmetic, added, how.unrounded, (w1_scales, w2_scales),
        replace(added, accumulator=how.second or how.accumulator), (how.way.weight, weight), how.rounded,
    )  # fmt: skip
    return experts, Interval(source, source, x_scales)


def coded_tokens(form: Format, x: Tensor, scale: Tensor) -> Coded:
    """Return quantized tokens `(tokens, k)` as routed_moe takes them, decoded as far as codes and scales."""
    codes = unpack_e2m1(x) if form.element == "e2m1" else x
    if form.rows:
        return Coded(codes, codes.new_zeros((len(codes), 0), dtype=torch.uint8), scale)
    return Coded(codes, scale if form.scale == "float32" else scale.view(torch.uint8))


def judge(ctx: Context, out: Tensor, given: dict[str, Any], name: str = "routed layer") -> Comparison:
    """Judge an output of a call on the problem's own weights: see `judge_call`."""
    return judge_call(ctx, out, given, ctx.routed.token_rows(), name, matrices_of(ctx))


def matrices_of(ctx: Context) -> tuple[Matrix, Matrix]:
    """Return what is multiplied of the problem's own weights."""
    first, second = ((w.values, w.form.scales(w.block_scale)) for w in (ctx.routed.w1, ctx.routed.w2))
    return first, second


def computed(ctx: Context) -> Computed:
    """Return how the candidate computes, as far as it is known."""
    known = ctx.known
    return Computed(
        (ctx.form, FORMATS[ctx.traits.weight_format]), FinalSum.of(ctx.traits.final_sum), known.arithmetic,
        known.accumulator, known.summation, known.unrounded,
    )  # fmt: skip


def judge_call(
    ctx: Context,
    out: Tensor,
    given: dict[str, Any],
    rows: Rows,
    name: str,
    matrices: tuple[Matrix, Matrix] | None = None,
) -> Comparison:
    """Judge an output: every element must be what legal rows, added in a legal order, can come to.

    Args:
        ctx: how the candidate computes.
        out: `(tokens, hidden)`.
        given: keyword arguments of the call.
        rows: where the tokens come from.
        name: of the comparison.
        matrices: as `legal` takes them.
    """
    if not len(rows):
        return Comparison(name)
    allowed = legal(given, computed(ctx), matrices)
    there = routes_of(given["topk_idx"], len(given["w1"]), given["local_expert_offset"]).there
    served = there.any(-1).nonzero().flatten()  # the others' rows are all alike
    return compare_range(
        ctx, name, out, allowed, rows, served, lambda row: f"experts {given['topk_idx'][row].tolist()}"
    )


def compare_range(
    ctx: Context,
    name: str,
    out: Tensor,
    allowed: LegalRouted,
    rows: Rows,
    served: Tensor,
    about: Callable[[int], str],
) -> Comparison:
    """Compare rows with the range of each element.

    Args:
        ctx: how the candidate computes.
        name: of the comparison.
        out: `(rows, columns)`.
        allowed: their ranges.
        rows: where they come from.
        served: rows that are computed and not all alike, `(some,)` int64.
        about: what a message says of a row.
    """
    accepts, low, high = allowed.accepts, allowed.low, allowed.high
    altered = altered_copies(out, accepts) | {
        "x1.1": lambda: accepted(accepts, lambda part: (out[part].double() * 1.1).to(out.dtype), len(out))
    }
    altered = altered if len(served) else {}
    if len(served) > 1:
        swapped = out.clone()
        swapped[served[[0, -1]]] = out[served[[-1, 0]]]
        altered["two swapped rows"] = lambda: accepted(accepts, lambda part: swapped[part], len(out))
    result = accepts(out)
    center, radius = (low + high) / 2, ((high - low) / 2).clamp(min=1e-300)
    ratio = (out.double() - center).abs() / radius
    return compare(
        name,
        result,
        rows,
        judged=_how_judged(ctx, low == high),
        altered=altered,
        show=lambda row, c: (
            f"= {float(out[row, c]):.8g}, legal are {float(low[row, c]):.8g} to {float(high[row, c]):.8g} "
            f"({about(row)})"
        ),
        ratio=torch.where(result, ratio.nan_to_num(0.0).clamp(max=1.0), ratio.nan_to_num(torch.inf)),
    )


def _how_judged(ctx: Context, single: Tensor) -> dict[str, int]:
    known = f", sums by {ctx.known.summation}" if ctx.known.summation else ""
    how = f"{ctx.known.arithmetic.describe_codes()}{known}; final sum {ctx.traits.final_sum}"
    return {f"one value, {how}": int(single.sum()), f"bound {how}": int((~single).sum())}

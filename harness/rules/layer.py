"""PIPELINE and MOE: the whole layer, each stage judged on what the candidate's own previous stage produced."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from harness.candidates.layouts import Pair
from harness.judging.comparison import Comparison, accepted, altered_copies, compare, compare_equal
from harness.judging.context import Context
from harness.judging.contract import Quantized
from harness.judging.predicted import orders_of
from harness.judging.quantize import QuantizerInput
from reference import layer_range
from reference.intervals import Interval
from reference.matrix_units import Summation
from reference.propagate import Added

_SELDOM = 1 / 16
"""Share of the rows that another order of the first GEMM may give another code."""


def pipeline(ctx: Context) -> list[Comparison]:
    """PIPELINE: quantize, GEMM, activation, GEMM, called one after the other."""
    t, rows = ctx.tensors, ctx.rows()
    a = ctx.quantize(t.x, t.input_scale)
    given = QuantizerInput.known(rows.take(t.x))
    found = ctx.judge_quantized("quantize", given, a.valid(rows), t.input_scale, rows)
    a = ctx.passed_on(a)
    gemm1 = ctx.gemm(a.pair, t.w1, t.w1_alpha)
    found.append(ctx.judge_gemm("gemm1", gemm1, t.w1, t.w1_alpha, a))
    if ctx.problem.activation == "silu" and not ctx.has("silu_mul_quantize_grouped"):
        return found
    if ctx.problem.activation == "silu":
        a2 = ctx.silu_mul_quantize(gemm1, t.a2_scale)
        given = ctx.activated(rows.take(gemm1))
    else:
        a2 = ctx.quantize(gemm1.relu().square().contiguous(), t.a2_scale)
        given = QuantizerInput.activated(rows.take(gemm1), "relu2", t.layer_dtype)
    found += ctx.judge_quantized("activation", given, a2.valid(rows), t.a2_scale, rows)
    a2 = ctx.passed_on(a2)
    gemm2 = ctx.gemm(a2.pair, t.w2, t.w2_alpha)
    found.append(ctx.judge_gemm("gemm2", gemm2, t.w2, t.w2_alpha, a2))
    return found


def moe(ctx: Context) -> list[Comparison]:
    """MOE: the layer in one call; judged through its tapped stages where the candidate has taps, else by propagation."""
    t = ctx.tensors
    hidden: Pair = (t.x, None)
    if "prequantized" in ctx.problem.extras:
        hidden = ctx.reference_operand()
    return judged_layer(ctx, hidden)


def judged_layer(
    ctx: Context, hidden: Pair, within: AbstractContextManager[Any] | None = None
) -> list[Comparison]:
    """Call the layer and judge it, through its tapped stages where the candidate has taps.

    Args:
        ctx: the problem.
        hidden: the tokens, as masked_moe takes them.
        within: entered for the call alone.
    """
    if hasattr(ctx.calls, "masked_moe_tapped"):
        with within or nullcontext():
            out, calls = ctx.calls.masked_moe_tapped(**ctx.moe_arguments(hidden))
        return judge_taps(ctx, ctx.checked_layer(out), calls)
    with within or nullcontext():
        out = ctx.moe(hidden)
    return [judge_opaque(ctx, out)]


def judge_taps(ctx: Context, out: Tensor, calls: list[Any]) -> list[Comparison]:
    """Judge every recorded stage call of one layer on its own inputs, and that the layer returned the last one's output.

    Args:
        ctx: the problem.
        out: `(l, m, k)` bfloat16, what the layer returned.
        calls: objects with `stage`, `inputs` and `outputs` (harness.candidates.taps.StageCall).
    """
    t, rows = ctx.tensors, ctx.rows()
    found: list[Comparison] = []
    gemms: list[Tensor] = []
    for call in calls:
        if call.stage == "masked_grouped_gemm":
            name, weights, alpha = ("gemm2", t.w2, t.w2_alpha) if gemms else ("gemm1", t.w1, t.w1_alpha)
            a = Quantized.decoded((call.inputs["a"], call.inputs["a_scale"]), ctx.form)
            gemms.append(call.outputs["out"].permute(2, 0, 1))
            found.append(ctx.judge_gemm(f"tapped {name}", gemms[-1], weights, alpha, a))
            continue
        silu = call.stage == "silu_mul_quantize_grouped"
        source = call.inputs["gate_up" if silu else "x"]
        x = rows.take(source)
        given = ctx.activated(x) if silu else QuantizerInput.known(x)
        shape = torch.Size((*source.shape[:2], source.shape[2] // 2)) if silu else source.shape
        outputs = call.outputs["packed"], call.outputs["block_scale"]
        got = ctx.checked(outputs, shape, call.stage)
        name, scale = ("activation", t.a2_scale) if silu or gemms else ("quantize", t.input_scale)
        found += ctx.judge_quantized(f"tapped {name}", given, got.valid(rows), scale, rows)
    if len(gemms) != 2:
        raise RuntimeError(
            f"masked_moe_tapped recorded {len(gemms)} GEMMs, expected 2: the taps missed the engine's calls"
        )
    found.append(
        compare_equal(
            "layer output", rows.take(out), rows.take(gemms[-1]), rows, "the last GEMM stored something else"
        )
    )
    return found


def judge_opaque(ctx: Context, out: Tensor) -> Comparison:
    """Judge the layer's output against the range that legal stages can reach.

    Power is judged on x1.1 and one swapped row besides the usual alterations: a propagated range that accepts those
    says nothing.
    """
    rows = ctx.rows()
    if not len(rows):
        return Comparison("layer, propagated")
    got = rows.take(out).double()
    low, high, otherwise = _legal_range(ctx, got)
    nan_expected, anything = low.isnan() | high.isnan(), Interval(low, high).anything()

    def accepts(values: Tensor, rows: slice = slice(None)) -> Tensor:
        inside = (values >= low[rows]) & (values <= high[rows]) | anything[rows]
        return torch.where(nan_expected[rows], values.isnan(), inside)

    center = (low + high) / 2
    ratio = (got - center).abs() / ((high - low) / 2).clamp(min=1e-300)
    swapped = got.clone()
    if len(rows) > 1:
        swapped[[0, -1]] = got[[-1, 0]]
    altered = altered_copies(got, accepts) | {
        "x1.1": lambda: accepted(
            accepts, lambda part: (got[part] * 1.1).to(ctx.form.layer_dtype).double(), len(got)
        )
    }
    if len(rows) > 1:
        altered["two swapped rows"] = lambda: accepted(accepts, lambda part: swapped[part], len(got))
    legal = accepts(got)
    if bool((nan_expected | anything).all()) and bool(legal.all()):
        return Comparison("layer, propagated")  # nothing of it can be told from what a buffer held
    return compare(
        "layer, propagated",
        legal,
        rows,
        judged=_how_judged(ctx, low == high, otherwise),
        altered=altered,
        show=lambda r, c: (
            f"= {float(got[r, c]):.8g}, legal are {float(low[r, c]):.8g} to {float(high[r, c]):.8g}"
        ),
        ratio=torch.where(legal, ratio.nan_to_num(0.0).clamp(max=1.0), ratio.nan_to_num(torch.inf)),
    )


def _legal_range(ctx: Context, got: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the smallest and the largest legal outputs, and which rows are legal in another order of additions alone.

    A right layer may add in another order where it has other rows or another k than the probes had. So a row that is not as
    the known order gives it is right as well if it lies within the bound of the second GEMM, given the codes that the
    first one gives. An order seldom changes those: of few rows other orders of the first GEMM are tried.
    """
    known = ctx.known.summation
    low, high = _propagated(ctx, _added(ctx, known))
    otherwise = torch.zeros(len(got), dtype=torch.bool, device=got.device)
    if known is None:
        return low, high, otherwise
    wrong = ~_within(got, low, high)
    for first in (known, *_other_orders(known, ctx.problem.hidden)):
        at = wrong.nonzero().flatten()
        if not len(at) or (first is not known and len(at) > max(1, len(got) * _SELDOM)):
            break
        few_low, few_high = _propagated(ctx, _added(ctx, first), _added(ctx), wrong)
        right = _within(got[at], few_low, few_high)
        found = at[right]
        low[found], high[found] = few_low[right], few_high[right]
        wrong[found], otherwise[found] = False, True
        if first is known and bool(wrong.any()):  # what no order gives is not asked further
            wrong[wrong.clone()] = _within(got[wrong], *_propagated(ctx, _added(ctx), None, wrong))
    return low, high, otherwise


def _added(ctx: Context, summation: Summation | None = None) -> Added:
    """Return how both GEMMs add, by the bound alone where no summation is given."""
    return Added(ctx.known.accumulator, summation, (ctx.form, ctx.tensors.w1.form))


def _within(got: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return which rows lie within a range everywhere, NaN where that is NaN."""
    is_nan = low.isnan() | high.isnan()
    return torch.where(is_nan, got.isnan(), (got >= low) & (got <= high)).all(-1)


def _other_orders(known: Summation, k: int) -> list[Summation]:
    """Return the unit's orders along k that add otherwise than the known one, one of each kind."""
    here = known.at(k)
    by_order = {order.order(k): order for order in reversed(orders_of(Summation(known.name), k))}
    if here is not None:
        by_order.pop(here.order(k), None)
    return list(reversed(by_order.values()))


def _how_judged(ctx: Context, single: Tensor, otherwise: Tensor) -> dict[str, int]:
    """Return how many elements have one legal value, and how many a range, in words for the record."""
    summation = f", sums by {ctx.known.summation}" if ctx.known.summation else ""
    how = f"propagated through the stages: {ctx.known.arithmetic.describe_codes()}{summation}"
    rest = single[~otherwise]
    judged = {f"one value, {how}": int(rest.sum()), f"bound {how}": int((~rest).sum())}
    if bool(otherwise.any()):
        judged["bound of the second GEMM: added in another order"] = single[otherwise].numel()
    return judged


def _propagated(
    ctx: Context, added: Added, second: Added | None = None, which: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the range of the valid rows, or of those in `which`, `(rows,)` bool."""
    t = ctx.tensors
    prequantized = "prequantized" in ctx.problem.extras
    rows, source_scale = ctx.rows(), None
    taken = prequantized or ctx.form.plain  # as the first GEMM multiplies it
    if taken:
        coded = ctx.reference_quantized().map(rows.take)
        source = ctx.form.values(coded, torch.float64)
        if coded.row_scale is not None:
            source *= coded.row_scale
        elif ctx.form.scale != "float32":
            source_scale = ctx.form.scales(coded.block_scale)
    else:
        source = rows.take(t.x).double()
    counts = ctx.masked_m
    if which is not None:
        counts = [int(part.sum()) for part in torch.split(which, counts)]
        source = source[which]
        source_scale = None if source_scale is None else source_scale[which]
    scales = t.w1_alpha, None if taken else ctx.encode(t.input_scale), ctx.encode(t.a2_scale), t.w2_alpha
    result = layer_range.masked_moe(
        Interval(source, source, source_scale), counts, t.w1.values, t.w2.values, scales,
        ctx.activation, ctx.known.arithmetic, added, ctx.known.unrounded,
        (t.w1.form.scales(t.w1.block_scale), t.w2.form.scales(t.w2.block_scale)), second,
    )  # fmt: skip
    return result.low, result.high

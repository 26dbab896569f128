"""PAD-ROWS, PAD-SCALES, PAD-OUT: what lies in padding or lay in a buffer before must not reach a valid element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from harness.candidates.layouts import Pair
from harness.candidates.protocol import ROUTED
from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.judging.poisons import named_unwritten, poisoned, poisoned_allocations
from harness.rules import routed_calls
from harness.rules.agreement import agree
from harness.rules.layer import judged_layer
from harness.rules.memory import naming
from reference.formats import Format
from reference.moe import valid_rows

POISONS = (float("nan"), float("inf"), 6e4)


def _padded(ctx: Context, tensor: Tensor, fill: float) -> Tensor:
    """Return a `(l, m, *)` tensor with its padding rows filled."""
    padding = ~valid_rows(ctx.tensors.masked_m, tensor.shape[1])
    return tensor.masked_fill(padding.unsqueeze(-1), fill)


def padding_rows(ctx: Context) -> list[Comparison]:
    """PAD-ROWS: each stage with zeros and with poison in the rows at or past masked_m."""
    t, rows = ctx.tensors, ctx.rows()
    found: list[Comparison] = []
    poison = POISONS[ctx.problem.seed % len(POISONS)]
    what = f"the padding rows hold {poison} instead of zeros"
    if ctx.has("quantize_grouped"):
        clean, dirty = (
            ctx.quantize(_padded(ctx, t.x, f), t.input_scale).valid_bytes(rows) for f in (0.0, poison)
        )
        found += agree(ctx, "quantize", dirty, clean, what)
    if ctx.has("silu_mul_quantize_grouped"):
        clean, dirty = (
            ctx.silu_mul_quantize(_padded(ctx, t.gate_up, f), t.a2_scale).valid_bytes(rows)
            for f in (0.0, poison)
        )
        found += agree(ctx, "activation", dirty, clean, what)
    if ctx.has("masked_grouped_gemm"):
        clean, dirty = (
            rows.take(ctx.gemm(_operand_with_padding(ctx, with_nan=f), t.w1, t.w1_alpha, dtype=ctx.out_dtype))
            for f in (False, True)
        )
        held = f"-{ctx.form.largest:g} and NaN scales" if ctx.form.scale or ctx.form.rows else "NaN"
        found += agree(ctx, "gemm", dirty, clean, f"the padding rows of A hold {held}, not zeros")
    if ctx.has("masked_moe") and not ctx.traits.deterministic:
        found += judged_layer(ctx, (_padded(ctx, t.x, poison), None))
    elif ctx.has("masked_moe"):
        clean, dirty = (rows.take(ctx.moe((_padded(ctx, t.x, f), None))) for f in (0.0, poison))
        found += agree(ctx, "layer", dirty, clean, what)
    if ctx.has(ROUTED):
        found += routed_calls.empty_slots(ctx, poison)
    return found


def _operand_with_padding(ctx: Context, *, with_nan: bool) -> Pair:
    """Return the quantized tokens, padding rows holding zeros, or -6 and NaN (tile padding of the scales included)."""
    coded = ctx.reference_quantized()
    padding = ~valid_rows(ctx.tensors.masked_m, coded.codes.shape[1]).unsqueeze(-1)
    if not with_nan:
        return ctx.stored(coded.map(lambda t: t.masked_fill(padding, 0)))
    most = torch.nan if ctx.form.plain else 0xF if ctx.form.element == "e2m1" else 0xFE
    coded = replace(coded, codes=coded.codes.masked_fill(padding, most))
    coded, _ = poisoned(ctx.form, coded, padding)
    return ctx.stored(coded, ctx.form.nan_scale if ctx.form.swizzled else 0)


def padding_scales(ctx: Context) -> list[Comparison]:
    """PAD-SCALES: zeros, NaN and 448 in the padding of both operands' block scales (rows to 128, columns to 4)."""
    t, rows = ctx.tensors, ctx.rows()
    outputs = []
    for fill in ("zero", "nan", "largest"):
        of_a, of_b = (_scale_byte(form, fill) for form in (ctx.form, t.w1.form))
        a, b = ctx.reference_operand(of_a), ctx.weights_operand(t.w1, of_b)
        outputs.append(rows.take(ctx.gemm(a, t.w1, t.w1_alpha, dtype=ctx.out_dtype, b=b)))
    return [
        *agree(ctx, "gemm", outputs[1], outputs[0], "the scale padding holds NaN instead of zeros"),
        *agree(
            ctx, "gemm", outputs[2], outputs[0], "the scale padding holds the largest scale instead of zeros"
        ),
    ]


def _scale_byte(form: Format, fill: str) -> int:
    """Return the byte of a block scale of zero (E8M0: the smallest), NaN, or the largest; 0 of a format without."""
    if not form.swizzled or fill == "zero":
        return 0
    return form.nan_scale if fill == "nan" else form.largest_scale


def outputs(ctx: Context) -> list[Comparison]:
    """PAD-OUT: each stage with its buffers holding NaN patterns and holding something else; the GEMM with every output type."""
    t, rows = ctx.tensors, ctx.rows()
    found: list[Comparison] = []
    if ctx.has("quantize_grouped"):
        found += _twice(ctx, "quantize", lambda: ctx.quantize(t.x, t.input_scale).valid_bytes(rows))
    if ctx.has("silu_mul_quantize_grouped"):
        found += _twice(
            ctx, "activation", lambda: ctx.silu_mul_quantize(t.gate_up, t.a2_scale).valid_bytes(rows)
        )
    if ctx.has("masked_grouped_gemm"):
        for dtype in ctx.traits.out_dtypes:
            found += _gemm_output(ctx, getattr(torch, dtype))
    if ctx.has("masked_moe") and not ctx.traits.deterministic:
        _leave_behind(ctx)
        found += judged_layer(ctx, (t.x, None), poisoned_allocations(ctx.traits.device))
    elif ctx.has("masked_moe"):
        found += _twice(ctx, "layer", lambda: rows.take(ctx.moe()))
    if ctx.has(ROUTED):
        found += routed_calls.outputs(ctx)
    return found


def _gemm_output(ctx: Context, dtype: torch.dtype) -> list[Comparison]:
    t, rows, a = ctx.tensors, ctx.rows(), ctx.reference_operand()
    nan, other = (
        rows.take(ctx.gemm(a, t.w1, t.w1_alpha, dtype=dtype, fill=fill)) for fill in (float("nan"), 13.0)
    )
    what = "the output held NaN instead of 13"
    return named_unwritten(agree(ctx, "gemm", nan, other, what, name=f"gemm{naming(dtype)}"), nan)


def _twice(ctx: Context, stage: str, run: Callable[[], Tensor]) -> list[Comparison]:
    """Run a stage whose buffers the candidate allocates, with clean and with poisoned allocations."""
    # Blocks of the same size that were just freed hold this, and allocators hand them out again.
    _leave_behind(ctx)
    clean = run()
    with poisoned_allocations(ctx.traits.device):
        poisoned = run()
    what = "fresh allocations hold NaN patterns instead of leftovers"
    return named_unwritten(agree(ctx, stage, poisoned, clean, what), poisoned)


def _leave_behind(ctx: Context) -> None:
    """Fill and free memory, so that an output that is never written does not happen to hold the right values."""
    shape = ctx.tensors.x.shape
    for size in (shape[0] * shape[1] * shape[2] // 2, shape[0] * shape[1] * shape[2]):
        torch.full((size,), 0x55, dtype=torch.uint8, device=ctx.traits.device)

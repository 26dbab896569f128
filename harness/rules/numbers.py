"""QUANT, ACT, GEMM: one stage on drawn inputs, judged element by element."""

from __future__ import annotations

import torch

from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.judging.quantize import QuantizerInput


def quantize(ctx: Context) -> list[Comparison]:
    """QUANT: quantize_grouped on the problem's tokens."""
    t, rows = ctx.tensors, ctx.rows()
    got = ctx.quantize(t.x, t.input_scale)
    given = QuantizerInput.known(rows.take(t.x))
    return ctx.judge_quantized("quantize", given, got.valid(rows), t.input_scale, rows)


def activation(ctx: Context) -> list[Comparison]:
    """ACT: silu_mul_quantize_grouped on drawn gate and up halves."""
    t, rows = ctx.tensors, ctx.rows()
    got = ctx.silu_mul_quantize(t.gate_up, t.a2_scale)
    given = ctx.activated(rows.take(t.gate_up))
    return ctx.judge_quantized("activation", given, got.valid(rows), t.a2_scale, rows)


def gemm(ctx: Context) -> list[Comparison]:
    """GEMM: masked_grouped_gemm on the tokens as the reference quantizes them, and drawn weights."""
    t = ctx.tensors
    alpha = None if "no_alpha" in ctx.problem.extras else t.w1_alpha
    out = ctx.gemm(ctx.reference_operand(), t.w1, alpha, dtype=getattr(torch, ctx.problem.out_dtype))
    return [ctx.judge_gemm("gemm", out, t.w1, alpha)]

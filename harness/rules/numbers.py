"""QUANT, ACT, GEMM: one stage on drawn inputs, judged element by element."""

from __future__ import annotations

import torch

from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.judging.gemm import judge_gemm
from harness.judging.quantize import QuantizerInput, judge_quantized
from reference.nvfp4 import decode_blocks


def quantize(ctx: Context) -> list[Comparison]:
    """QUANT: quantize_grouped on the problem's tokens."""
    t, rows = ctx.tensors, ctx.rows()
    if not len(rows):
        ctx.quantize(t.x, t.input_scale)
        return [Comparison("quantize.scale"), Comparison("quantize.codes")]
    got = ctx.quantize(t.x, t.input_scale)
    return judge_quantized(
        "quantize",
        QuantizerInput.known(rows.take(t.x)),
        rows.take(got.codes),
        rows.take(got.block_scale),
        t.input_scale,
        rows,
        ctx.known.arithmetic,
        keeps_sign_of_zero=ctx.traits.keeps_sign_of_zero,
    )


def activation(ctx: Context) -> list[Comparison]:
    """ACT: silu_mul_quantize_grouped on drawn gate and up halves."""
    t, rows = ctx.tensors, ctx.rows()
    got = ctx.silu_mul_quantize(t.gate_up, t.a2_scale)
    if not len(rows):
        return [Comparison("activation.scale"), Comparison("activation.codes")]
    return judge_quantized(
        "activation",
        QuantizerInput.activated(rows.take(t.gate_up), "silu"),
        rows.take(got.codes),
        rows.take(got.block_scale),
        t.a2_scale,
        rows,
        ctx.known.arithmetic,
        keeps_sign_of_zero=ctx.traits.keeps_sign_of_zero,
    )


def gemm(ctx: Context) -> list[Comparison]:
    """GEMM: masked_grouped_gemm on the tokens as the reference quantizes them, and drawn weights."""
    t = ctx.tensors
    codes, block_scale = ctx.reference_quantized()
    alpha = None if "no_alpha" in ctx.problem.extras else t.w1_alpha
    dtype = getattr(torch, ctx.problem.out_dtype)
    out = ctx.gemm(ctx.reference_operand(), t.w1, alpha, dtype=dtype)
    values = decode_blocks(codes, block_scale, torch.float32)
    return [
        judge_gemm(
            "gemm", out, values, t.w1.values, alpha, ctx.masked_m, ctx.known.accumulator, b_steps=t.w1.steps
        )
    ]

"""Two outputs of one stage that must agree: bit for bit, or, for a candidate that may vary from call to call, legally."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.gemm import judge_gemm
from harness.judging.quantize import QuantizerInput, judge_quantized
from harness.problems.rows import Rows
from reference.nvfp4 import BLOCK, decode_blocks


def agree(
    ctx: Context, stage: str, changed: Tensor, plain: Tensor, what: str, *, name: str = ""
) -> list[Comparison]:
    """Compare the valid rows of a stage's output with those of the same stage before a change that must not matter.

    Args:
        ctx: the problem.
        stage: "quantize", "activation", "gemm" or "layer".
        changed: `(rows, columns)`, after the change; codes and scale bytes side by side for the quantizers.
        plain: the same without the change.
        what: the change, for the message.
        name: of the comparison, where it is not the stage's.

    Returns:
        One comparison of bits; for a candidate that declares deterministic=False, whether the changed output is legal.
    """
    rows = ctx.rows()
    if ctx.traits.deterministic:
        return [compare_equal(name or stage, changed, plain, rows, what)]
    if not len(rows):
        return [Comparison(name or stage)]
    return _legal(ctx, stage, changed, rows)


def _legal(ctx: Context, stage: str, valid: Tensor, rows: Rows) -> list[Comparison]:
    t = ctx.tensors
    if stage in {"quantize", "activation"}:
        k = valid.shape[1] * BLOCK // (BLOCK + 1)
        silu = stage == "activation"
        given = (
            QuantizerInput.activated(rows.take(t.gate_up), "silu")
            if silu
            else QuantizerInput.known(rows.take(t.x))
        )
        return judge_quantized(
            stage, given, valid[:, :k], valid[:, k:], t.a2_scale if silu else t.input_scale, rows, ctx.known.arithmetic,
            keeps_sign_of_zero=ctx.traits.keeps_sign_of_zero,
        )  # fmt: skip
    out = torch.zeros((rows.experts, rows.capacity, valid.shape[1]), dtype=valid.dtype, device=valid.device)
    out[rows.expert, rows.row] = valid
    if stage == "layer":
        from harness.rules.layer import judge_opaque

        return [judge_opaque(ctx, out)]
    values = decode_blocks(*ctx.reference_quantized(), torch.float32)
    accumulator = ctx.known.accumulator
    return [
        judge_gemm(stage, out, values, t.w1.values, t.w1_alpha, ctx.masked_m, accumulator, b_steps=t.w1.steps)
    ]

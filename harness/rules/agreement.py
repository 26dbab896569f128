"""Two outputs of one stage that must agree: bit for bit, or, for a candidate that may vary from call to call, legally."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.contract import Quantized
from harness.judging.quantize import QuantizerInput
from harness.problems.rows import Rows
from harness.problems.weights import Weights
from harness.rules import NotApplicableError
from reference.formats import Coded


def need_determinism(ctx: Context) -> None:
    """Raise NotApplicableError for a candidate whose bits may differ between two equal calls."""
    if not ctx.traits.deterministic:
        raise NotApplicableError(
            "the candidate declares deterministic=False: bits may differ between two calls"
        )


def need_invariance(ctx: Context) -> None:
    """Raise NotApplicableError for a candidate whose bits may also depend on a row's place."""
    need_determinism(ctx)
    if not ctx.traits.place_invariant:
        raise NotApplicableError(
            "the candidate declares place_invariant=False: bits may depend on where a row stands"
        )


def agree(
    ctx: Context,
    stage: str,
    changed: Tensor,
    plain: Tensor,
    what: str,
    *,
    name: str = "",
    a: Quantized | None = None,
    weights: Weights | None = None,
) -> list[Comparison]:
    """Compare the valid rows of a stage's output with those of the same stage before a change that must not matter.

    Args:
        ctx: the problem.
        stage: "quantize", "activation", "gemm", or, of a deterministic candidate, "layer".
        changed: `(rows, columns)`, after the change; codes and scale bytes side by side for the quantizers.
        plain: the same without the change.
        what: the change, for the message.
        name: of the comparison, where it is not the stage's.
        a: of a GEMM that was given another operand than the problem's.
        weights: of one that was given others.

    Returns:
        One comparison of bits; for a candidate that declares deterministic=False, whether the changed output is legal.
    """
    rows = ctx.rows()
    if ctx.traits.deterministic:
        return [compare_equal(name or stage, changed, plain, rows, what)]
    if not len(rows):
        return [Comparison(name or stage)]
    return _legal(ctx, stage, changed, rows, a, weights)


def _legal(
    ctx: Context, stage: str, valid: Tensor, rows: Rows, a: Quantized | None, weights: Weights | None
) -> list[Comparison]:
    t = ctx.tensors
    if stage in {"quantize", "activation"}:
        block = ctx.form.block
        k = valid.shape[1] * block // (block + 1) if block else valid.shape[1] - int(ctx.form.rows)
        codes, scales = valid[:, :k].to(ctx.form.dtype), valid[:, k:]
        stored = Coded(codes, scales[:, :0], scales) if ctx.form.rows else Coded(codes, scales)
        if stage == "activation":
            given, scale = ctx.activated(rows.take(t.gate_up)), t.a2_scale
        else:
            given, scale = QuantizerInput.known(rows.take(t.x)), t.input_scale
        return ctx.judge_quantized(stage, given, stored, scale, rows)
    out = torch.zeros((rows.experts, rows.capacity, valid.shape[1]), dtype=valid.dtype, device=valid.device)
    out[rows.expert, rows.row] = valid
    return [ctx.judge_gemm(stage, out, weights or t.w1, t.w1_alpha, a)]

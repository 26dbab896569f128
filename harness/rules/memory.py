"""WRITES, INPUTS: what a candidate may write."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import ROUTED
from harness.judging.comparison import Comparison, compare
from harness.judging.context import Context
from harness.judging.lending import copied
from harness.judging.routed import arguments as routed_arguments
from harness.problems.rows import Rows

SENTINEL = 13.0
_GUARD = 4096  # elements before and behind the output buffer


def writes(ctx: Context) -> list[Comparison]:
    """WRITES: rows past the last tile with a valid row, empty experts and the memory around the output keep a sentinel.

    With every declared output type: a kernel has an epilogue for each.
    """
    return [found for dtype in ctx.traits.out_dtypes for found in _writes(ctx, getattr(torch, dtype))]


def _writes(ctx: Context, dtype: torch.dtype) -> list[Comparison]:
    t, p = ctx.tensors, ctx.problem
    n = t.w1.codes.shape[1]
    size = p.experts * p.capacity * n
    memory = torch.full((size + 2 * _GUARD,), SENTINEL, dtype=dtype, device=ctx.traits.device)
    out = memory[_GUARD : _GUARD + size].view(p.experts, p.capacity, n)
    ctx.gemm_into(out.permute(1, 2, 0), ctx.reference_operand(), t.w1, t.w1_alpha)
    store, named = ctx.traits.store_rows, naming(dtype)
    kept = [range(count, p.capacity) for count in stored_rows(ctx)]
    expert = torch.tensor(
        [e for e, rows in enumerate(kept) for _ in rows], dtype=torch.long, device=out.device
    )
    row = torch.tensor([r for rows in kept for r in rows], dtype=torch.long, device=out.device)
    rows = Rows(expert, row, p.experts, p.capacity)
    guard = torch.cat((memory[:_GUARD], memory[_GUARD + size :])).view(2, _GUARD)
    zero = torch.zeros(2, dtype=torch.long, device=out.device)
    around = Rows(zero, zero, 1, 1, "element")
    return [
        untouched(
            f"rows past the last tile{named}",
            out[expert, row],
            rows,
            f"stores may cover whole tiles of {store} rows only",
        ),
        untouched(
            f"memory around the output{named}", guard, around, "nothing outside the output may be written"
        ),
        # one that writes nothing at all must not pass
        ctx.judge_gemm(f"gemm{named}", out, t.w1, t.w1_alpha),
    ]


def naming(dtype: torch.dtype) -> str:
    """Return what is added to a comparison's name for an output type: nothing for bfloat16, the one that layers have."""
    return "" if dtype is torch.bfloat16 else f", {str(dtype).removeprefix('torch.')}"


def stored_rows(ctx: Context) -> list[int]:
    """Return how many rows of each expert a GEMM may write: whole store tiles of valid ones."""
    store, capacity = ctx.traits.store_rows, ctx.problem.capacity
    return [min(math.ceil(count / store) * store, capacity) for count in ctx.masked_m]


def untouched(stage: str, got: Tensor, rows: Rows, contract: str) -> Comparison:
    """Compare elements with the sentinel that they held before the call.

    Args:
        stage: name of the comparison.
        got: `(rows, columns)`, what is there now.
        rows: where they come from.
        contract: why they must not change, for the message.
    """
    return compare(
        stage,
        got == SENTINEL,
        rows,
        judged={"still the sentinel": got.numel()},
        # any value other than the sentinel is noticed: the sentinel is a constant
        altered={"zeros": lambda: False},
        show=lambda r, c: f"= {float(got[r, c]):.6g} was written, but {contract}",
    )


def inputs(ctx: Context) -> list[Comparison]:
    """INPUTS: every byte of every input, padding included, is what it was before the call."""
    t = ctx.tensors
    found = []
    for stage, x, scale in (
        ("quantize_grouped", {"x": t.x}, t.input_scale),
        ("silu_mul_quantize_grouped", {"gate_up": t.gate_up}, t.a2_scale),
    ):
        if ctx.has(stage):
            arguments = {**x, "masked_m": t.masked_m, "global_scale_enc": ctx.encode(scale)}
            given = {name: tensor.clone() for name, tensor in arguments.items()}
            found.append(_unchanged(stage, given, partial(getattr(ctx.candidate, stage), *given.values())))
    if ctx.has("masked_grouped_gemm"):
        found += [_gemm_inputs(ctx, getattr(torch, dtype)) for dtype in ctx.traits.out_dtypes]
    if ctx.has("masked_moe"):
        found.append(_layer_inputs(ctx))
    if ctx.has(ROUTED):
        found.append(_routed_inputs(ctx))
    return found


def _gemm_inputs(ctx: Context, dtype: torch.dtype) -> Comparison:
    t, p = ctx.tensors, ctx.problem
    a, a_scale = ctx.reference_operand()
    b, b_scale = ctx.weights_operand(t.w1)
    masked_m, alpha = t.masked_m.clone(), t.w1_alpha.clone()
    out = layouts.empty_out(p.experts, p.capacity, t.w1.codes.shape[1], dtype, ctx.traits.device, 0.0)
    named = {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale, "masked_m": masked_m, "alpha": alpha}
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    call = partial(ctx.candidate.masked_grouped_gemm, a, a_scale, b, b_scale, out, masked_m, alpha)
    return _unchanged(f"masked_grouped_gemm{naming(dtype)}", given, call)


def _layer_inputs(ctx: Context) -> Comparison:
    """Judge the layer on bfloat16 tokens or on the quantized pair, as the problem's seed has it."""
    prequantized = ctx.problem.seed % 2 == 1 and not ctx.traits.without_scales
    hidden = ctx.reference_operand() if prequantized else (ctx.tensors.x, None)
    named = copied(ctx.moe_arguments(hidden))
    given = {k: v for k, v in named.items() if isinstance(v, Tensor)}
    given |= dict(zip(("x", "x_scale"), (t for t in named["hidden_states"] if t is not None), strict=False))
    name = "masked_moe, quantized tokens" if prequantized else "masked_moe"
    return _unchanged(name, given, partial(ctx.candidate.masked_moe, **named))


def _routed_inputs(ctx: Context) -> Comparison:
    """Judge a routed layer on bfloat16 tokens or on quantized ones, as the problem's seed has it."""
    prequantized = ctx.problem.seed % 2 == 1 and not ctx.traits.without_scales
    named = copied(routed_arguments(ctx, prequantized=prequantized))
    given = {k: v for k, v in named.items() if isinstance(v, Tensor) and k != "out"}
    given |= dict(zip(("x", "x_scale"), (t for t in named["hidden_states"] if t is not None), strict=False))
    name = "routed_moe, quantized tokens" if prequantized else "routed_moe"
    return _unchanged(name, given, partial(ctx.candidate.routed_moe, **named))


def _unchanged(stage: str, given: dict[str, Tensor], call: Callable[[], object]) -> Comparison:
    before = {name: _bytes(tensor).clone() for name, tensor in given.items()}
    call()
    names = list(before)
    same = torch.stack([(_bytes(given[name]) == before[name]).all() for name in names]).unsqueeze(0).cpu()
    zero = torch.zeros(1, dtype=torch.long)
    return compare(
        stage,
        same,
        Rows(zero, zero, 1, 1, "input"),
        judged={"inputs compared byte for byte": len(names)},
        altered={},
        show=lambda _, c: f"the call changed its input {names[c]}",
    )


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, whatever its strides, as a flat view of its memory."""
    order = sorted(range(tensor.ndim), key=lambda d: (-int(tensor.stride()[d]), d))
    flat = tensor.permute(order).contiguous() if tensor.ndim else tensor.reshape(1)
    return flat.view(-1).view(torch.uint8) if flat.element_size() > 1 else flat.view(torch.uint8).view(-1)

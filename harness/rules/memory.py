"""WRITES, INPUTS, LAYOUT-OUT, LAYOUT-IN: what a candidate may write, and in which layouts it may be called."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.judging.comparison import Comparison, compare
from harness.judging.context import Context, device_is_lost
from harness.problems.rows import Rows
from harness.rules.agreement import agree

SENTINEL = 13.0
_REFUSALS = (ValueError, TypeError, AssertionError, RuntimeError)
_GUARD = 4096  # elements before and behind the output buffer


def writes(ctx: Context) -> list[Comparison]:
    """WRITES: rows past the last tile with a valid row, empty experts and the memory around the output keep a sentinel."""
    t, p = ctx.tensors, ctx.problem
    n = t.w1.codes.shape[1]
    size = p.experts * p.capacity * n
    memory = torch.full((size + 2 * _GUARD,), SENTINEL, dtype=torch.bfloat16, device=ctx.traits.device)
    out = memory[_GUARD : _GUARD + size].view(p.experts, p.capacity, n)
    ctx.gemm_into(out.permute(1, 2, 0), ctx.reference_operand(), t.w1, t.w1_alpha)
    store = ctx.traits.store_rows
    kept = [range(min(math.ceil(count / store) * store, p.capacity), p.capacity) for count in p.masked_m]
    expert = torch.tensor(
        [e for e, rows in enumerate(kept) for _ in rows], dtype=torch.long, device=out.device
    )
    row = torch.tensor([r for rows in kept for r in rows], dtype=torch.long, device=out.device)
    rows = Rows(expert, row, p.experts, p.capacity)
    guard = torch.cat((memory[:_GUARD], memory[_GUARD + size :])).view(2, _GUARD)
    zero = torch.zeros(2, dtype=torch.long, device=out.device)
    around = Rows(zero, zero, 1, 1, "element")
    return [
        _untouched(
            "rows past the last tile",
            out[expert, row],
            rows,
            f"stores may cover whole tiles of {store} rows only",
        ),
        _untouched("memory around the output", guard, around, "nothing outside the output may be written"),
        ctx.judge_gemm("gemm", out, t.w1, t.w1_alpha),  # one that writes nothing at all must not pass
    ]


def _untouched(stage: str, got: Tensor, rows: Rows, contract: str) -> Comparison:
    return compare(
        stage,
        got == SENTINEL,
        rows,
        judged={"still the sentinel": got.numel()},
        altered={
            "zeros": lambda: (
                False
            ),  # any value other than the sentinel is noticed: the sentinel is a constant
        },
        show=lambda r, c: f"= {float(got[r, c]):.6g} was written, but {contract}",
    )


def inputs(ctx: Context) -> list[Comparison]:
    """INPUTS: every byte of every input, padding included, is what it was before the call."""
    t, p = ctx.tensors, ctx.problem
    found = []
    for stage, x, scale in (
        ("quantize_grouped", {"x": t.x}, t.input_scale),
        ("silu_mul_quantize_grouped", {"gate_up": t.gate_up}, t.a2_scale),
    ):
        if ctx.has(stage):
            arguments = {**x, "masked_m": t.masked_m, "global_scale_enc": scale}
            given = {name: tensor.clone() for name, tensor in arguments.items()}
            found.append(_unchanged(stage, given, partial(getattr(ctx.candidate, stage), *given.values())))
    if ctx.has("masked_grouped_gemm"):
        a, a_scale = ctx.reference_operand()
        b, b_scale = layouts.operand(t.w1.codes), layouts.scales(t.w1.block_scale)
        masked_m, alpha = t.masked_m.clone(), t.w1_alpha.clone()
        out = layouts.empty_out(
            p.experts, p.capacity, t.w1.codes.shape[1], torch.bfloat16, ctx.traits.device, 0.0
        )
        given = {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale, "masked_m": masked_m, "alpha": alpha}
        call = partial(ctx.candidate.masked_grouped_gemm, a, a_scale, b, b_scale, out, masked_m, alpha)
        found.append(_unchanged("masked_grouped_gemm", given, call))
    if ctx.has("masked_moe"):
        named = ctx.moe_arguments((t.x.clone(), None))
        given = {k: v for k, v in named.items() if isinstance(v, Tensor)} | {"x": named["hidden_states"][0]}
        found.append(_unchanged("masked_moe", given, partial(ctx.candidate.masked_moe, **named)))
    return found


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


def output_layout(ctx: Context) -> list[Comparison]:
    """LAYOUT-OUT: an output with the expert axis innermost is refused, or holds the same values (flashinfer#3103)."""
    t, p = ctx.tensors, ctx.problem
    n = t.w1.codes.shape[1]
    rows, a = ctx.rows(), ctx.reference_operand()
    name = "output, experts innermost"
    wanted = rows.take(ctx.gemm(a, t.w1, t.w1_alpha))
    out = torch.full((p.capacity, n, p.experts), SENTINEL, dtype=torch.bfloat16, device=ctx.traits.device)
    try:
        ctx.gemm_into(out, a, t.w1, t.w1_alpha)
    except _REFUSALS as error:
        return [_refused(name, error)]
    got = rows.take(out.permute(2, 0, 1))
    return agree(ctx, "gemm", got, wanted, "the strides of the output were ignored", name=name)


def operand_layout(ctx: Context) -> list[Comparison]:
    """LAYOUT-IN: operands and scales with the expert axis innermost are refused, or read right."""
    t = ctx.tensors
    rows, a = ctx.rows(), ctx.reference_operand()
    wanted = rows.take(ctx.gemm(a, t.w1, t.w1_alpha))
    found: list[Comparison] = []
    for name, changed in (
        ("operand A, experts innermost", (a[0].contiguous(), a[1])),
        (
            "scales of A, experts innermost",
            (a[0], a[1].view(torch.uint8).contiguous().view(torch.float8_e4m3fn)),
        ),
    ):
        try:
            got = rows.take(ctx.gemm(changed, t.w1, t.w1_alpha))
        except _REFUSALS as error:
            found.append(_refused(name, error))
            continue
        found += agree(ctx, "gemm", got, wanted, "the strides were ignored and memory was misread", name=name)
    return found


def _refused(stage: str, error: Exception) -> Comparison:
    if device_is_lost(error):
        raise error  # the launch went ahead and broke the context: the opposite of a refusal
    return Comparison(stage, compared=1, judged={"refused with an error": 1})

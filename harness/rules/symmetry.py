"""REPEAT, ISOLATION, EXPERTS, TOKENS, POW2, CAPACITY, HINTS: two calls whose outputs must agree bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context, Quantized, checked_moe_output
from harness.judging.gemm import judge_gemm
from harness.problems.rows import Rows
from harness.problems.tensors import Weights
from harness.rules import NotApplicableError
from reference.e4m3 import take
from reference.nvfp4 import decode_blocks


def _need_determinism(ctx: Context) -> None:
    if not ctx.traits.deterministic:
        raise NotApplicableError(
            "the candidate declares deterministic=False: bits may differ between two calls"
        )


def _need_invariance(ctx: Context) -> None:
    _need_determinism(ctx)
    if not ctx.traits.place_invariant:
        raise NotApplicableError(
            "the candidate declares place_invariant=False: bits may depend on where a row stands"
        )


def _stages(ctx: Context) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield every stage that the candidate has, as a call that returns its valid rows."""
    t, rows = ctx.tensors, ctx.rows()
    if ctx.has("quantize_grouped"):
        yield "quantize", lambda: ctx.quantize(t.x, t.input_scale).valid_bytes(rows)
    if ctx.has("silu_mul_quantize_grouped"):
        yield "activation", lambda: ctx.silu_mul_quantize(t.gate_up, t.a2_scale).valid_bytes(rows)
    if ctx.has("masked_grouped_gemm"):
        a = ctx.reference_operand()
        yield "gemm", lambda: rows.take(ctx.gemm(a, t.w1, t.w1_alpha))
    if ctx.has("masked_moe"):
        yield "layer", lambda: rows.take(ctx.moe())


def repeat(ctx: Context) -> list[Comparison]:
    """REPEAT: every stage twice on the same input."""
    _need_determinism(ctx)
    return [
        compare_equal(name, call(), call(), ctx.rows(), "the second of two identical calls")
        for name, call in _stages(ctx)
    ]


def isolation(ctx: Context) -> list[Comparison]:
    """ISOLATION: NaN scales in one expert's operands leave all other experts' outputs as they are."""
    _need_determinism(ctx)
    t, p = ctx.tensors, ctx.problem
    victims = [e for e, count in enumerate(p.masked_m) if count]
    if len(victims) < 2:
        return [Comparison("gemm")]
    poisoned = victims[p.seed % len(victims)]
    codes, block_scale = ctx.reference_quantized()
    clean = ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha)
    block_scale[poisoned] = 0x7F
    dirty = ctx.gemm((layouts.operand(codes), layouts.scales(block_scale)), t.w1, t.w1_alpha)
    rows = ctx.rows()
    others = rows.expert != poisoned
    kept = Rows(rows.expert[others], rows.row[others], p.experts, p.capacity)
    what = f"the scales of expert {poisoned} are NaN"
    return [compare_equal("gemm", kept.take(dirty), kept.take(clean), kept, what)]


def _permuted_weights(weights: Weights, order: Tensor) -> Weights:
    return Weights(weights.codes[order], weights.block_scale[order])


def expert_permutation(ctx: Context) -> list[Comparison]:
    """EXPERTS: with experts in another order, every expert's output moves with it, bit for bit."""
    _need_invariance(ctx)
    t, p = ctx.tensors, ctx.problem
    generator = torch.Generator().manual_seed(p.seed)
    order = torch.randperm(p.experts, generator=generator).to(ctx.traits.device)
    back = torch.argsort(order)
    masked_m = t.masked_m[order].contiguous()
    rows, found = ctx.rows(), []
    what = f"experts are in the order {order.tolist()[:16]}"

    def restored(q: Quantized) -> Tensor:
        return Quantized(q.packed, q.scales, q.codes[back], q.block_scale[back]).valid_bytes(rows)

    if ctx.has("quantize_grouped"):
        clean = ctx.quantize(t.x, t.input_scale).valid_bytes(rows)
        moved = ctx.quantize(t.x[order], t.input_scale[order], masked_m)
        found.append(compare_equal("quantize", restored(moved), clean, rows, what))
    if ctx.has("silu_mul_quantize_grouped"):
        clean = ctx.silu_mul_quantize(t.gate_up, t.a2_scale).valid_bytes(rows)
        moved = ctx.silu_mul_quantize(t.gate_up[order], t.a2_scale[order], masked_m)
        found.append(compare_equal("activation", restored(moved), clean, rows, what))
    if ctx.has("masked_grouped_gemm"):
        codes, block_scale = ctx.reference_quantized()
        clean = rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha))
        moved_a = layouts.operand(codes[order]), layouts.scales(block_scale[order])
        moved_out = ctx.gemm(
            moved_a, _permuted_weights(t.w1, order), t.w1_alpha[order].contiguous(), masked_m=masked_m
        )
        found.append(compare_equal("gemm", rows.take(moved_out[back]), clean, rows, what))
    if ctx.has("masked_moe"):
        clean = rows.take(ctx.moe())
        arguments = ctx.moe_arguments((t.x, None))
        moved_arguments = {
            name: take(value, order).contiguous() if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        moved_arguments["hidden_states"] = (t.x[order], None)
        out = checked_moe_output(ctx.candidate.masked_moe(**moved_arguments), p)
        found.append(compare_equal("layer", rows.take(out[back]), clean, rows, what))
    return found


def token_permutation(ctx: Context) -> list[Comparison]:
    """TOKENS: with an expert's valid rows in reverse order, every row's output moves with it, bit for bit."""
    _need_invariance(ctx)
    t, rows = ctx.tensors, ctx.rows()
    count = t.masked_m.long()[rows.expert]
    mirrored = Rows(rows.expert, count - 1 - rows.row, rows.experts, rows.capacity)
    found = []
    what = "the valid rows of every expert are in reverse order"

    def moved(tensor: Tensor) -> Tensor:
        result = tensor.clone()
        result[mirrored.expert, mirrored.row] = tensor[rows.expert, rows.row]
        return result

    if ctx.has("quantize_grouped"):
        got = ctx.quantize(moved(t.x), t.input_scale).valid_bytes(mirrored)
        found.append(
            compare_equal("quantize", got, ctx.quantize(t.x, t.input_scale).valid_bytes(rows), rows, what)
        )
    if ctx.has("silu_mul_quantize_grouped"):
        got = ctx.silu_mul_quantize(moved(t.gate_up), t.a2_scale).valid_bytes(mirrored)
        clean = ctx.silu_mul_quantize(t.gate_up, t.a2_scale).valid_bytes(rows)
        found.append(compare_equal("activation", got, clean, rows, what))
    if ctx.has("masked_grouped_gemm"):
        codes, block_scale = ctx.reference_quantized()
        a = layouts.operand(moved(codes)), layouts.scales(moved(block_scale))
        got = mirrored.take(ctx.gemm(a, t.w1, t.w1_alpha))
        found.append(
            compare_equal(
                "gemm", got, rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha)), rows, what
            )
        )
    if ctx.has("masked_moe"):
        found.append(
            compare_equal(
                "layer", mirrored.take(ctx.moe((moved(t.x), None))), rows.take(ctx.moe()), rows, what
            )
        )
    return found


def power_of_two(ctx: Context) -> list[Comparison]:
    """POW2: x * 2^j with the encode scale * 2^-j gives the same bytes; alpha * 2^j gives the output * 2^j."""
    _need_determinism(ctx)
    t, rows = ctx.tensors, ctx.rows()
    power = 2.0 ** (ctx.problem.seed % 5 - 2 or 3)
    # Subnormal elements lose bits when they are halved: they are not part of this rule's sentence.
    x = torch.where(t.x.abs() < 2.0**-100, torch.zeros_like(t.x), t.x)
    clean = ctx.quantize(x, t.input_scale).valid_bytes(rows)
    moved = ctx.quantize(x * power, t.input_scale / power).valid_bytes(rows)
    found = [
        compare_equal("quantize", moved, clean, rows, f"x is times {power}, its encode scale divided by it")
    ]
    if ctx.has("masked_grouped_gemm"):
        a = ctx.reference_operand()
        plain = rows.take(ctx.gemm(a, t.w1, t.w1_alpha)) * power
        scaled = rows.take(ctx.gemm(a, t.w1, t.w1_alpha * power))
        found.append(compare_equal("gemm", scaled, plain, rows, f"alpha is times {power}"))
    return found


def capacity(ctx: Context) -> list[Comparison]:
    """CAPACITY: 96 more rows of padding per expert leave every valid row as it is."""
    _need_invariance(ctx)
    t, rows = ctx.tensors, ctx.rows()
    more = -(-96 // ctx.traits.m_multiple) * ctx.traits.m_multiple
    found = []
    what = f"the capacity is larger by {more} rows"

    def grown(tensor: Tensor) -> Tensor:
        return torch.cat((tensor, tensor[:, :1].expand(-1, more, -1)), dim=1)

    if ctx.has("quantize_grouped"):
        got = ctx.quantize(grown(t.x), t.input_scale).valid_bytes(rows)
        found.append(
            compare_equal("quantize", got, ctx.quantize(t.x, t.input_scale).valid_bytes(rows), rows, what)
        )
    if ctx.has("silu_mul_quantize_grouped"):
        got = ctx.silu_mul_quantize(grown(t.gate_up), t.a2_scale).valid_bytes(rows)
        clean = ctx.silu_mul_quantize(t.gate_up, t.a2_scale).valid_bytes(rows)
        found.append(compare_equal("activation", got, clean, rows, what))
    if ctx.has("masked_grouped_gemm"):
        codes, block_scale = ctx.reference_quantized()
        a = layouts.operand(grown(codes)), layouts.scales(grown(block_scale))
        clean = rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha))
        found.append(compare_equal("gemm", rows.take(ctx.gemm(a, t.w1, t.w1_alpha)), clean, rows, what))
    if ctx.has("masked_moe"):
        larger = dataclasses.replace(ctx.problem, capacity=ctx.problem.capacity + more)
        out = ctx.candidate.masked_moe(**ctx.moe_arguments((grown(t.x), None)))
        got = rows.take(checked_moe_output(out, larger))
        found.append(compare_equal("layer", got, rows.take(ctx.moe()), rows, what))
    return found


def hints(ctx: Context) -> list[Comparison]:
    """HINTS: with each declared set of hints the GEMM's output is as legal as without."""
    if not ctx.traits.hints:
        raise NotApplicableError("the candidate declares no hints")
    t, a = ctx.tensors, ctx.reference_operand()
    values = decode_blocks(*ctx.reference_quantized(), torch.float32)
    hint = ctx.traits.hints[ctx.problem.seed % len(ctx.traits.hints)]
    out = ctx.gemm(a, t.w1, t.w1_alpha, hints=hint)
    name = "gemm with " + ", ".join(f"{k}={v}" for k, v in hint.items())
    return [
        judge_gemm(
            name,
            out,
            values,
            t.w1.values,
            t.w1_alpha,
            ctx.masked_m,
            ctx.known.accumulator,
            b_steps=t.w1.steps,
        )
    ]

"""ISOLATION, EXPERTS, TOKENS, POW2, CAPACITY, HINTS: two calls whose outputs must agree bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.candidates.protocol import ROUTED, STAGES
from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.poisons import poisoned
from harness.problems.draws import draws_of
from harness.problems.rows import Rows
from harness.problems.weights import Weights
from harness.rules import NotApplicableError, routed_calls
from harness.rules.agreement import need_determinism, need_invariance
from reference.e4m3 import take

_LARGEST_POWER = 8  # of those that POW2 moves


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class _Moved:
    """The problem with its rows in other places.

    Attributes:
        rows: where each of the problem's valid rows stands now, in their own order.
        tokens: moves the rows of a `(l, m, *)` tensor.
        experts: moves the entries of a `(l, *)` tensor.
    """

    rows: Rows
    tokens: Callable[[Tensor], Tensor] = _unchanged
    experts: Callable[[Tensor], Tensor] = _unchanged


def _stages(ctx: Context, moved: _Moved) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield every stage that the candidate has, as a call that returns the valid rows in the problem's own order."""
    t, rows, tokens, experts = ctx.tensors, moved.rows, moved.tokens, moved.experts
    masked_m = experts(t.masked_m)
    if ctx.has("quantize_grouped"):
        x, scale = tokens(t.x), experts(t.input_scale)
        yield "quantize", lambda: ctx.quantize(x, scale, masked_m).valid_bytes(rows)
    if ctx.has("silu_mul_quantize_grouped"):
        gate_up, a2_scale = tokens(t.gate_up), experts(t.a2_scale)
        yield "activation", lambda: ctx.silu_mul_quantize(gate_up, a2_scale, masked_m).valid_bytes(rows)
    if ctx.has("masked_grouped_gemm"):
        a = ctx.stored(ctx.reference_quantized().map(tokens))
        w1 = Weights(experts(t.w1.codes), experts(t.w1.block_scale), t.w1.form)
        alpha = experts(t.w1_alpha)
        yield (
            "gemm",
            lambda: rows.take(ctx.gemm(a, w1, alpha, masked_m=masked_m, dtype=ctx.out_dtype)),
        )
    if ctx.has("masked_moe"):
        yield "layer", lambda: rows.take(_layer(ctx, moved))


def _layer(ctx: Context, moved: _Moved) -> Tensor:
    x = moved.tokens(ctx.tensors.x)
    arguments = {
        name: moved.experts(value) if isinstance(value, Tensor) else value
        for name, value in ctx.moe_arguments((x, None)).items()
    }
    problem = dataclasses.replace(ctx.problem, capacity=x.shape[1])
    return ctx.checked_layer(ctx.calls.masked_moe(**arguments), problem)


def _agree(ctx: Context, moved: _Moved, what: str) -> list[Comparison]:
    """Compare every stage on the moved problem with the same stage on the problem as it is."""
    rows, found = ctx.rows(), []
    for (name, before), (_, after) in zip(_stages(ctx, _Moved(rows)), _stages(ctx, moved), strict=True):
        clean = before()
        found.append(compare_equal(name, after(), clean, rows, what))
    return found


def isolation(ctx: Context) -> list[Comparison]:
    """ISOLATION: NaN scales in one expert's operands leave all other experts' outputs as they are.

    Of a candidate whose contract has no NaN they are 448, the largest. A format without scales has elements of NaN.
    """
    need_determinism(ctx)
    t, p = ctx.tensors, ctx.problem
    victims = [e for e, count in enumerate(p.masked_m) if count]
    if len(victims) < 2:
        return [Comparison("gemm")]
    victim = victims[p.seed % len(victims)]
    coded, dtype = ctx.reference_quantized(), ctx.out_dtype
    clean = ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha, dtype=dtype)
    here = torch.zeros((p.experts, 1, 1), dtype=torch.bool, device=ctx.traits.device)
    here[victim] = True
    dirty_a, what = poisoned(ctx.form, coded, here, finite=ctx.traits.finite_only)
    dirty = ctx.gemm(ctx.stored(dirty_a), t.w1, t.w1_alpha, dtype=dtype)
    rows = ctx.rows()
    kept = rows.only(rows.expert != victim)
    what = what.format(f"expert {victim}")
    return [compare_equal("gemm", kept.take(dirty), kept.take(clean), kept, what)]


def expert_permutation(ctx: Context) -> list[Comparison]:
    """EXPERTS: with experts in another order, every expert's output moves with it, bit for bit."""
    need_invariance(ctx)
    p, device = ctx.problem, ctx.traits.device
    order = draws_of(p.version, "experts", p.seed, device).order(p.experts).to(device)
    rows = ctx.rows()

    def permuted(tensor: Tensor) -> Tensor:
        return take(tensor, order).contiguous()

    there = dataclasses.replace(rows, expert=torch.argsort(order)[rows.expert])
    moved, what = _Moved(there, permuted, permuted), f"experts are in the order {order.tolist()[:16]}"
    return _agree(ctx, moved, what) + (
        routed_calls.experts_moved(ctx, order, what) if ctx.has(ROUTED) else []
    )


def token_permutation(ctx: Context) -> list[Comparison]:
    """TOKENS: with an expert's valid rows in reverse order, every row's output moves with it, bit for bit."""
    need_invariance(ctx)
    rows = ctx.rows()
    there = dataclasses.replace(rows, row=ctx.tensors.masked_m.long()[rows.expert] - 1 - rows.row)

    def mirrored(tensor: Tensor) -> Tensor:
        result = tensor.clone()
        result[there.expert, there.row] = rows.take(tensor)
        return result

    found = _agree(ctx, _Moved(there, mirrored), "the valid rows of every expert are in reverse order")
    return found + (routed_calls.tokens_moved(ctx) if ctx.has(ROUTED) else [])


def power_of_two(ctx: Context) -> list[Comparison]:
    """POW2: x * 2^j with the encode scale * 2^-j gives the same bytes; alpha * 2^j gives the output * 2^j."""
    need_determinism(ctx)
    t, rows = ctx.tensors, ctx.rows()
    power = 2.0 ** (ctx.problem.seed % 5 - 2 or 3)
    # Subnormal elements lose bits when they are halved: they are not part of this rule's sentence.
    x = torch.where(t.x.abs() < 2.0**-100, torch.zeros_like(t.x), t.x)
    found = []
    if ctx.form.encoded:
        clean = ctx.quantize(x, t.input_scale).valid_bytes(rows)
        moved = ctx.quantize(x * power, t.input_scale / power).valid_bytes(rows)
        what = f"x is times {power}, its encode scale divided by it"
        found.append(compare_equal("quantize", moved, clean, rows, what))
    if ctx.has("masked_grouped_gemm"):
        a = ctx.reference_operand()
        plain = rows.take(ctx.gemm(a, t.w1, t.w1_alpha)) * power
        scaled = rows.take(ctx.gemm(a, t.w1, t.w1_alpha * power))
        if (
            not t.form.encoded
        ):  # tokens may be so small that outputs are subnormal, which lose bits when they are halved
            least = torch.finfo(scaled.dtype).smallest_normal * _LARGEST_POWER
            lost = (plain.abs() < least) | (scaled.abs() < least)
            plain, scaled = (out.masked_fill(lost, 0) for out in (plain, scaled))
        found.append(compare_equal("gemm", scaled, plain, rows, f"alpha is times {power}"))
    return found


def capacity(ctx: Context) -> list[Comparison]:
    """CAPACITY: 96 more rows of padding per expert leave every valid row as it is."""
    need_invariance(ctx)
    if not any(map(ctx.has, STAGES)):
        raise NotApplicableError("the candidate has no stage of the masked layer: there is no capacity")
    more = -(-96 // ctx.traits.m_multiple) * ctx.traits.m_multiple

    def grown(tensor: Tensor) -> Tensor:
        return torch.cat((tensor, tensor[:, :1].expand(-1, more, -1)), dim=1)

    return _agree(ctx, _Moved(ctx.rows(), grown), f"the capacity is larger by {more} rows")


def hints(ctx: Context) -> list[Comparison]:
    """HINTS: with each declared set of hints the GEMM's output is as legal as without."""
    if not ctx.traits.hints:
        raise NotApplicableError("the candidate declares no hints")
    t, a = ctx.tensors, ctx.reference_operand()
    hint = ctx.traits.hints[ctx.problem.seed % len(ctx.traits.hints)]
    out = ctx.gemm(a, t.w1, t.w1_alpha, hints=hint, dtype=ctx.out_dtype)
    name = "gemm with " + ", ".join(f"{k}={v}" for k, v in hint.items())
    return [ctx.judge_gemm(name, out, t.w1, t.w1_alpha)]

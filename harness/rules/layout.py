"""LAYOUT-OUT, LAYOUT-IN: tensors that lie in memory as a caller may hand them over are refused, or written and read right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.candidates.layouts import Pair
from harness.candidates.protocol import ROUTED
from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.judging.contract import Quantized
from harness.problems.rows import Rows
from harness.rules import NotApplicableError, routed_calls
from harness.rules.agreement import agree
from harness.rules.memory import SENTINEL, naming, stored_rows, untouched
from harness.rules.refusals import REFUSALS, refused

_STAGES = ("quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm", ROUTED)
_EQUAL_ROWS = 3  # valid rows of each expert where all have as many
_GAP = 16  # bytes between the rows of a slice: as much as the kernels' loads are aligned to


def output_layout(ctx: Context) -> list[Comparison]:
    """LAYOUT-OUT: an output that is a slice or has experts innermost is refused, or holds the same values and no more.

    A slice may start at any multiple of `Traits.output_alignment`, where a fresh allocation starts at a larger one.
    """
    t, rows, a = ctx.tensors, ctx.rows(), ctx.reference_operand()
    dtype = ctx.out_dtype
    wanted = rows.take(ctx.gemm(a, t.w1, t.w1_alpha, dtype=dtype))
    found: list[Comparison] = []
    for name, memory, out in _outputs(ctx, dtype):
        name = f"{name}{naming(dtype)}"  # noqa: PLW2901 - the type belongs to it
        try:
            ctx.gemm_into(out, a, t.w1, t.w1_alpha)
        except REFUSALS as error:
            found.append(refused(name, error))
            continue
        got = rows.take(out.permute(2, 0, 1))
        found += agree(
            ctx, "gemm", got, wanted, "address or strides of the output were not followed", name=name
        )
        around = memory[_not_the_candidates(ctx, memory, out)].view(1, -1)
        zero = torch.zeros(1, dtype=torch.long, device=memory.device)
        element = Rows(zero, zero, 1, 1, "element")
        found.append(untouched(f"memory around the {name}", around, element, "it is not the output's"))
    return found


def _outputs(ctx: Context, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, memory full of the sentinel, and an output in it, logical `(m, n, l)`."""
    p = ctx.problem
    shape = p.capacity, ctx.tensors.w1.codes.shape[1], p.experts
    rows, columns, experts = shape
    size, align = dtype.itemsize, math.lcm(ctx.traits.output_alignment, dtype.itemsize)
    step = align // size
    wide, more = columns + step, rows + 1
    for name, strides, start in (
        ("output, experts innermost", (columns * experts, experts, 1), 0),
        (f"output, {align} bytes behind an aligned address", (columns, 1, rows * columns), step),
        ("output, columns of a wider one", (wide, 1, rows * wide), step),
        ("output, rows of a longer one", (columns, 1, more * columns), 0),
    ):
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        memory = torch.full((span + 4 * step,), SENTINEL, dtype=dtype, device=ctx.traits.device)
        # the address modulo twice the alignment, so that it is not also a multiple of a larger one
        lead = (start * size - memory.data_ptr()) % (2 * align) // size
        yield name, memory, torch.as_strided(memory, shape, strides, lead)


def _not_the_candidates(ctx: Context, memory: Tensor, out: Tensor) -> Tensor:
    """Return which elements of a flat memory a GEMM may not write: what is not in whole tiles of the output."""
    kept = torch.ones(len(memory), dtype=torch.bool, device=memory.device)
    mask = torch.as_strided(kept, out.shape, out.stride(), out.storage_offset())
    for expert, count in enumerate(stored_rows(ctx)):
        mask[:count, :, expert] = False
    return kept


def input_layout(ctx: Context) -> list[Comparison]:
    """LAYOUT-IN: inputs in another layout, slices of wider ones or expanded, are refused with an error, or read right."""
    if not any(map(ctx.has, _STAGES)):
        raise NotApplicableError(f"the candidate has none of {', '.join(_STAGES)}")
    found: list[Comparison] = []
    even = _all_experts_alike(ctx)
    for stage, name, quantize, scales in _quantizers(ctx):
        rows, (x, scale) = ctx.rows(), scales(ctx)
        wanted = quantize(ctx, x, scale).valid_bytes(rows)
        call = partial(_bytes_of, ctx, quantize, _of_wider(x), scale)
        found += _judged(ctx, stage, f"{name}, columns of a wider one", call, wanted)
        if not ctx.form.encoded:
            continue
        rows, (x, scale) = even.rows(), scales(even)
        wanted = quantize(even, x, scale).valid_bytes(rows)
        call = partial(_bytes_of, even, quantize, x, _expanded(scale))
        found += _judged(even, stage, f"encode scales of {name}, expanded", call, wanted)
    if ctx.has("masked_grouped_gemm"):
        found += _operands(ctx) + _shared_operands(ctx) + _vectors(even)
    if ctx.has(ROUTED):
        found += routed_calls.layouts(ctx)
    return found


Quantize = Callable[[Context, Tensor, Tensor], Quantized]


def _quantizers(
    ctx: Context,
) -> Iterator[tuple[str, str, Quantize, Callable[[Context], tuple[Tensor, Tensor]]]]:
    """Yield of each quantizer that there is: stage, name of its input, the call, and where a problem has its inputs."""
    if ctx.has("quantize_grouped"):
        yield "quantize", "x", Context.quantize, lambda c: (c.tensors.x, c.tensors.input_scale)
    if ctx.has("silu_mul_quantize_grouped"):
        yield (
            "activation",
            "gate_up",
            Context.silu_mul_quantize,
            lambda c: (c.tensors.gate_up, c.tensors.a2_scale),
        )


def _bytes_of(ctx: Context, quantize: Quantize, x: Tensor, scale: Tensor) -> Tensor:
    return quantize(ctx, x, scale).valid_bytes(ctx.rows())


def _operands(ctx: Context) -> list[Comparison]:
    """Judge a GEMM on operands and scales in other layouts."""
    t, rows, dtype = ctx.tensors, ctx.rows(), ctx.out_dtype
    a, b = ctx.reference_operand(), ctx.weights_operand(t.w1)

    def product(a: Pair, b: Pair) -> Tensor:
        return rows.take(ctx.gemm(a, t.w1, t.w1_alpha, dtype=dtype, b=b))

    wanted = product(a, b)
    calls = {f"{name}A{how}": (changed, b) for name, how, changed in _otherwise(a)}
    calls |= {f"{name}B{how}": (a, changed) for name, how, changed in _otherwise(b)}
    found: list[Comparison] = []
    for name, changed in calls.items():
        found += _judged(ctx, "gemm", f"{name}{naming(dtype)}", partial(product, *changed), wanted)
    return found


def _otherwise(pair: Pair) -> Iterator[tuple[str, str, Pair]]:
    """Yield an operand in other layouts, with what they are called: what stands before and behind its letter."""
    operand, scales = pair
    yield "operand ", ", experts innermost", (_experts_innermost(operand), scales)
    if scales is not None and scales.ndim == 3:  # float32, experts outermost
        innermost = scales.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        yield "scales of ", ", experts innermost", (operand, innermost)
    elif scales is not None:
        yield "scales of ", ", experts innermost", (operand, _experts_innermost(scales))
    yield "operand ", ", columns of a wider one", (_rows_of_wider(operand), scales)


def _vectors(even: Context) -> list[Comparison]:
    """Judge a GEMM on alpha and masked_m that were made by `expand`."""
    t, rows, dtype, a = even.tensors, even.rows(), even.out_dtype, even.reference_operand()

    def product(alpha: Tensor, masked_m: Tensor) -> Tensor:
        return rows.take(even.gemm(a, t.w1, alpha, dtype=dtype, masked_m=masked_m))

    wanted = product(t.w1_alpha, t.masked_m)
    found: list[Comparison] = []
    for name, alpha, masked_m in (
        ("alpha, expanded", _expanded(t.w1_alpha), t.masked_m),
        ("masked_m, expanded", t.w1_alpha, _expanded(t.masked_m)),
    ):
        call = partial(product, alpha, masked_m)
        found += _judged(even, "gemm", f"{name}{naming(dtype)}", call, wanted)
    return found


def _shared_operands(ctx: Context) -> list[Comparison]:
    """Judge a GEMM on one operand that all experts share, made by `expand`."""
    t, rows, dtype = ctx.tensors, ctx.rows(), ctx.out_dtype
    a, b = ctx.reference_operand(), ctx.weights_operand(t.w1)
    coded = ctx.reference_quantized()
    shared_a = Quantized(a, dataclasses.replace(coded, codes=_first(coded.codes)), ctx.form)
    shared_b = dataclasses.replace(t.w1, codes=_first(t.w1.codes))
    found: list[Comparison] = []
    for name, is_a, (packed, scales), operands in (
        ("operand A", True, a, {"a": shared_a}),
        ("operand B", False, b, {"weights": shared_b}),
    ):
        memory = packed.permute(2, 0, 1)
        alike, expanded = memory[:1].repeat(len(memory), 1, 1), _expanded(memory)

        def product(shared: Tensor, *, is_a: bool = is_a, scales: Tensor | None = scales) -> Tensor:
            operand = shared.permute(1, 2, 0), scales
            given = (operand, b) if is_a else (a, operand)
            return rows.take(ctx.gemm(given[0], t.w1, t.w1_alpha, dtype=dtype, b=given[1]))

        words, call = f"{name} of all experts, expanded{naming(dtype)}", partial(product, expanded)
        found += _judged(ctx, "gemm", words, call, product(alike), **operands)
    return found


def _first(tensor: Tensor) -> Tensor:
    """Return a tensor that holds the first of its matrices everywhere."""
    return tensor[:1].expand_as(tensor)


def _all_experts_alike(ctx: Context) -> Context:
    """Return the problem with as many rows, the same alpha and the same encode scales for every expert."""
    p = ctx.problem
    count = min(p.capacity, _EQUAL_ROWS)
    even = Context(ctx.candidate, dataclasses.replace(p, masked_m=(count,) * p.experts), ctx.known)
    t = even.tensors
    t.input_scale = t.input_scale[:1].repeat(p.experts)
    t.a2_scale = t.a2_scale[:1].repeat(p.experts)
    t.w1_alpha = t.w1_alpha[:1].repeat(p.experts)
    return even


def _expanded(tensor: Tensor) -> Tensor:
    """Return the first of equal elements, or matrices, with a stride of 0, as `expand` makes them.

    Behind it lie zeros: what ignores the stride stays in this memory, and multiplies with another number.
    """
    memory = torch.cat((tensor[:1], torch.zeros_like(tensor)))
    return memory[:1].expand(tensor.shape)


def _judged(
    ctx: Context, stage: str, name: str, call: Callable[[], Tensor], wanted: Tensor, **operands: Any
) -> list[Comparison]:
    """Compare what a call of a stage gives with what it should, or note that the call was refused.

    `operands` are those of `agree`.
    """
    try:
        got = call()
    except REFUSALS as error:
        return [refused(name, error)]
    what = "the strides were ignored and memory was misread"
    return agree(ctx, stage, got, wanted, what, name=name, **operands)


def _experts_innermost(tensor: Tensor) -> Tensor:
    """Return a logical `(..., l)` tensor with its last axis innermost in memory."""
    if tensor.element_size() > 1:
        return tensor.contiguous()
    return tensor.view(torch.uint8).contiguous().view(tensor.dtype)


def _rows_of_wider(operand: Tensor) -> Tensor:
    """Return a packed operand, logical `(m, k/2, l)`, as the columns of a wider one."""
    return _of_wider(operand.permute(2, 0, 1)).permute(1, 2, 0)


def _of_wider(tensor: Tensor) -> Tensor:
    """Return a `(l, m, columns)` tensor as the first columns of one that has 16 bytes more of them, all bits set."""
    columns, size = tensor.shape[2], tensor.element_size()
    shape = (*tensor.shape[:2], columns * size + _GAP)
    memory = torch.full(shape, 0xFF, dtype=torch.uint8, device=tensor.device).view(tensor.dtype)
    memory[..., :columns] = tensor
    return memory[..., :columns]

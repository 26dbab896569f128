"""REPEAT: two equal calls give the same bits, and buffers that held something else before are read anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import ROUTED
from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.lending import copied
from harness.problems.rows import Rows
from harness.rules import routed_calls
from harness.rules.agreement import need_determinism
from reference.formats import Coded

Arguments = dict[str, Any]


@dataclass(frozen=True)
class _Stage:
    """One stage with two sets of inputs of the same shapes.

    Attributes:
        name: for messages and the record.
        first: its arguments by name.
        second: other ones.
        call: calls it and returns the valid rows, given arguments and where those rows are.
    """

    name: str
    first: Arguments
    second: Arguments
    call: Callable[[Arguments, Rows], Tensor]


def repeat(ctx: Context) -> list[Comparison]:
    """REPEAT: every stage twice on the same buffers, then on other data in them, which must give what new buffers give.

    The other data are the problem's own, with the experts moved on by one and their rows in reverse order. The tensors are
    the same objects each time, the GEMM's output among them, and their contents are put back in between.
    """
    need_determinism(ctx)
    before = ctx.rows()
    after = Rows.valid(_moved(ctx.tensors.masked_m).tolist(), ctx.problem.capacity, ctx.traits.device)
    found: list[Comparison] = []
    for stage in _stages(ctx):
        buffers = copied(stage.first)
        once = stage.call(buffers, before)
        _fill(buffers, stage.first)
        what = "the second of two identical calls"
        found.append(compare_equal(stage.name, stage.call(buffers, before), once, before, what))
        _fill(buffers, stage.second)
        reused, fresh = stage.call(buffers, after), stage.call(copied(stage.second), after)
        what = "the same data in new buffers; these held other data in an earlier call"
        found.append(compare_equal(f"{stage.name}, buffers reused", reused, fresh, after, what))
    if ctx.has(ROUTED):
        found += routed_calls.repeated(ctx)
    if ctx.has("masked_grouped_gemm") and not ctx.traits.alpha_required and ctx.problem.seed % 2:
        found.append(_without_alpha(ctx, before))
    return found


def _without_alpha(ctx: Context, rows: Rows) -> Comparison:
    """Compare a GEMM without alpha, right behind one with, with one whose alphas are ones."""
    stage = _gemm(ctx)
    ones = stage.call(copied(stage.first) | {"alpha": torch.ones_like(stage.first["alpha"])}, rows)
    stage.call(copied(stage.first), rows)
    none = stage.call(copied(stage.first) | {"alpha": None}, rows)
    return compare_equal("gemm, no alpha", none, ones, rows, "alphas of ones; the call before had others")


def _stages(ctx: Context) -> Iterator[_Stage]:
    """Yield every stage that the candidate has."""
    t, candidate = ctx.tensors, ctx.candidate
    for name, function, x, scale in (
        ("quantize", "quantize_grouped", "x", "input_scale"),
        ("activation", "silu_mul_quantize_grouped", "gate_up", "a2_scale"),
    ):
        if ctx.has(function):
            yield _quantizer(ctx, name, function, getattr(t, x), getattr(t, scale))
    if ctx.has("masked_grouped_gemm"):
        yield _gemm(ctx)
    if ctx.has("masked_moe"):
        given = ctx.moe_arguments((t.x, None))
        moved = {n: _moved(v) if isinstance(v, Tensor) else v for n, v in given.items()}
        moved["hidden_states"] = (_turned(t.x), None)

        def layer(arguments: Arguments, rows: Rows) -> Tensor:
            return rows.take(ctx.checked_layer(candidate.masked_moe(**arguments)))

        yield _Stage("layer", given, moved, layer)


def _quantizer(ctx: Context, name: str, function: str, x: Tensor, scale: Tensor) -> _Stage:
    columns = x.shape[2] // (1 if name == "quantize" else 2)
    shape = torch.Size((*x.shape[:2], columns))

    def call(arguments: Arguments, rows: Rows) -> Tensor:
        result = getattr(ctx.candidate, function)(*arguments.values())
        return ctx.checked(result, shape, function).valid_bytes(rows)

    masked_m = ctx.tensors.masked_m
    first = {"x": x, "masked_m": masked_m, "global_scale_enc": ctx.encode(scale)}
    return _Stage(name, first, {"x": _turned(x)} | {n: _moved(v) for n, v in first.items() if n != "x"}, call)


def _gemm(ctx: Context) -> _Stage:
    t, p = ctx.tensors, ctx.problem
    coded, weights = ctx.reference_quantized(), Coded(t.w1.codes, t.w1.block_scale)
    extents = (p.experts, p.capacity, t.w1.codes.shape[1])
    out = layouts.empty_out(*extents, ctx.out_dtype, ctx.traits.device, float("nan"))

    def given(rows: Callable[[Tensor], Tensor], experts: Callable[[Tensor], Tensor]) -> Arguments:
        operands = *ctx.stored(coded.map(rows)), *layouts.stored(t.w1.form, weights.map(experts))
        return {
            **dict(zip(("a", "a_scale", "b", "b_scale"), operands, strict=True)),
            "out": out,
            "masked_m": experts(t.masked_m),
            "alpha": experts(t.w1_alpha),
        }

    def call(arguments: Arguments, rows: Rows) -> Tensor:
        ctx.candidate.masked_grouped_gemm(*arguments.values())
        return rows.take(arguments["out"].permute(2, 0, 1))

    return _Stage("gemm", given(Tensor.clone, Tensor.clone), given(_turned, _moved), call)


def _moved(tensor: Tensor) -> Tensor:
    """Return a `(l, *)` tensor with the experts moved on by one."""
    bytes_ = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
    return bytes_.roll(1, 0).view(tensor.dtype)


def _turned(tensor: Tensor) -> Tensor:
    """Return a `(l, m, *)` tensor with the experts moved on by one, and all rows of each in reverse order."""
    return _moved(tensor).flip(1)


def _fill(buffers: Any, values: Any) -> None:
    """Write values into tensors of the same shapes; the output keeps what the last call wrote."""
    if isinstance(buffers, Tensor):
        buffers.copy_(values)
    elif isinstance(buffers, dict):
        for name in buffers.keys() - {"out"}:
            _fill(buffers[name], values[name])
    elif isinstance(buffers, tuple):
        for buffer, value in zip(buffers, values, strict=True):
            _fill(buffer, value)

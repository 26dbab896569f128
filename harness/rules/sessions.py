"""SHAPES, GRAPH: what only shows when a process makes several calls."""

from __future__ import annotations

import dataclasses

import torch

from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.problems.pool import another
from harness.rules import NotApplicableError
from harness.rules.agreement import need_determinism


def shapes(ctx: Context) -> list[Comparison]:
    """SHAPES: a shape, another one, and the first again: both are right and the first repeats its bits (flashinfer#1856)."""
    p = ctx.problem
    other = dataclasses.replace(another(p, ctx.traits), masked_m=tuple(reversed(p.masked_m)), seed=p.seed + 1)
    second = Context(ctx.candidate, other, ctx.known)
    t, rows = ctx.tensors, ctx.rows()
    dtype = ctx.out_dtype
    before = rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha, dtype=dtype))
    w1, alpha = second.tensors.w1, second.tensors.w1_alpha
    out = second.gemm(second.reference_operand(), w1, alpha, dtype=dtype)
    found = [second.judge_gemm("gemm, second shape", out, w1, alpha)]
    after = rows.take(ctx.gemm(ctx.reference_operand(), t.w1, t.w1_alpha, dtype=dtype))
    if ctx.traits.deterministic:
        found.append(
            compare_equal("gemm, first shape again", after, before, rows, "another shape ran in between")
        )
    return found


def graph_replay(ctx: Context) -> list[Comparison]:
    """GRAPH: capture the layer, change tokens and masked_m in place, replay: equal to a fresh call on the new data."""
    if ctx.traits.device != "cuda":
        raise NotApplicableError("CUDA graphs need a CUDA device")
    if not ctx.traits.cuda_graph:
        raise NotApplicableError("the candidate declares cuda_graph=False")
    need_determinism(ctx)
    if not ctx.has("masked_moe"):
        raise NotApplicableError("the candidate has no masked_moe")
    t, p = ctx.tensors, ctx.problem
    x, masked_m = t.x.clone(), t.masked_m.clone()
    changed = dataclasses.replace(p, masked_m=tuple(reversed(p.masked_m)), seed=p.seed + 1)
    fresh = Context(ctx.candidate, changed, ctx.known)
    arguments = ctx.moe_arguments((x, None), masked_m)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # lazily made handles and compiled kernels must not fall into the capture
            ctx.candidate.masked_moe(**arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ctx.candidate.masked_moe(**arguments)
    x.copy_(fresh.tensors.x)
    masked_m.copy_(fresh.tensors.masked_m)
    graph.replay()
    torch.cuda.synchronize()
    rows = fresh.rows()
    direct = ctx.candidate.masked_moe(
        **(arguments | {"hidden_states": (x.clone(), None), "masked_m": masked_m.clone()})
    )
    return [
        compare_equal(
            "layer, replayed",
            rows.take(out),
            rows.take(direct),
            rows,
            "a graph was replayed on changed inputs",
        )
    ]

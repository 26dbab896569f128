"""The references on a GPU: seconds, share of the bandwidth of a copy, and ratios, all in one run.

python benchmarks/bench_on_gpu.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.problems.problem import parse_problem
from harness.problems.tensors import ProblemTensors
from reference.fast import launch
from reference.moe import masked_moe, valid_rows
from reference.nvfp4 import _quantize_by_definition, decode_blocks, global_scale_enc, quantize_nvfp4

LAYER = "v2:32x1024x7168x2048:0,1024,264*28,1,51:normal:8"
"""8,468 valid rows."""


def milliseconds(run: Callable[[], object], times: int = 10) -> tuple[float, float, float]:
    """Return the median of five rounds, the fastest and the slowest, of one call, after two to warm up."""
    run(), run()
    rounds = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - start) / times * 1e3)
    return statistics.median(rounds), min(rounds), max(rounds)


def on_the_gpu(run: Callable[[], object]) -> tuple[float, float, float]:
    """Return the same of a CUDA graph of ten calls, which costs the host nothing."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            run()
    median, least, most = milliseconds(graph.replay, 3)
    return median / 10, least / 10, most / 10


def line(what: str, found: tuple[float, float, float], more: str = "") -> float:
    """Print one result; return its median."""
    print(f"{what:44s} {found[0]:8.3f} ms ({found[1]:.3f} to {found[2]:.3f}){more}", flush=True)
    return found[0]


def tensors() -> None:
    """Quantize and decode 8192 x 7168 bfloat16."""
    x = torch.randn(8192, 7168, device="cuda").bfloat16()
    scale = global_scale_enc(x.abs().max().float())
    of = quantize_nvfp4(x, scale)
    bandwidth = 4 * x.numel() / line("copy 8192 x 7168 bfloat16, in a graph", on_the_gpu(x.clone))

    def share(found: tuple[float, float, float]) -> str:
        return f", {x.numel() * (3 + 1 / 16) / found[0] / bandwidth:.0%} of a copy's bandwidth"

    codes, block_scale = torch.empty_like(of.codes), torch.empty_like(of.block_scale)
    views = x.view(1, -1, 16), codes.view(1, -1, 16), block_scale.view(1, -1)
    flat, wanted = scale.reshape(1), torch.bfloat16
    compiled_quantize = torch.compile(quantize_nvfp4, fullgraph=True)
    compiled_decode = torch.compile(decode_blocks, fullgraph=True)
    again = compiled_quantize(x, scale)
    assert torch.equal(again.codes, of.codes)
    assert torch.equal(again.block_scale, of.block_scale)
    for what, measure, run in (
        ("quantize, by definition", milliseconds, lambda: _quantize_by_definition(*views, flat)),
        ("quantize", milliseconds, lambda: quantize_nvfp4(x, scale)),
        ("quantize, the kernel in a graph", on_the_gpu, lambda: launch.quantize_blocks(*views, flat)),
        ("quantize, compiled, in a graph", on_the_gpu, lambda: compiled_quantize(x, scale)),
        ("decode", milliseconds, lambda: decode_blocks(of.codes, of.block_scale, wanted)),
        ("decode, the kernel in a graph", on_the_gpu, lambda: launch.decode_blocks(of.codes, of.block_scale, wanted)),
        ("decode, compiled, in a graph", on_the_gpu, lambda: compiled_decode(of.codes, of.block_scale, wanted)),
    ):  # fmt: skip
        found = measure(run)
        line(what, found, share(found))
    with _Torch():
        for what, run in (
            ("quantize, torch alone", lambda: quantize_nvfp4(x, scale)),
            ("decode, torch alone", lambda: decode_blocks(of.codes, of.block_scale, wanted)),
        ):
            found = milliseconds(run)
            line(what, found, share(found))


class _Torch:
    """Without the kernels."""

    def __enter__(self) -> None:
        self._kept = launch.has_kernels
        launch.has_kernels = lambda _: False  # type: ignore[assignment] # for a while

    def __exit__(self, *_: object) -> None:
        launch.has_kernels = self._kept  # type: ignore[assignment] # as it was


def layer() -> None:
    """The masked MoE of a rank of DeepSeek-R1 at EP 8, beside what it is built of."""
    t = ProblemTensors(parse_problem(LAYER), "cuda")
    arguments: tuple[Any, ...] = (
        t.x, t.input_scale, t.w1.codes, t.w1.block_scale, t.w1_alpha, t.w2.codes, t.a2_scale, t.w2.block_scale,
        t.w2_alpha, t.masked_m,
    )  # fmt: skip
    counts, valid = t.masked_m.tolist(), valid_rows(t.masked_m, t.x.shape[1])
    print(f"masked MoE {LAYER}: {sum(counts):,} rows")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = masked_moe(*arguments)
    used = (torch.cuda.max_memory_allocated() - before) / 2**30
    ours = line(
        "  reference", milliseconds(lambda: masked_moe(*arguments), 3), f", {used:.2f} GiB over the inputs"
    )
    with _Torch():
        plain = masked_moe(*arguments)
        line("  torch alone", milliseconds(lambda: masked_moe(*arguments), 1))
    assert torch.equal(out[valid], plain[valid]), "every element the same"

    def naive() -> None:
        for e, rows in enumerate(counts):
            if rows:
                first = (
                    t.x[e, :rows].float() @ decode_blocks(t.w1.codes[e], t.w1.block_scale[e], torch.float32).T
                )
                gate, up = first.chunk(2, -1)
                middle: Tensor = torch.nn.functional.silu(gate) * up
                middle @ decode_blocks(t.w2.codes[e], t.w2.block_scale[e], torch.float32).T

    with _Torch():
        each = line("  dequantized to float32, expert by expert", milliseconds(naive, 3))
    dense = [
        [decode_blocks(w.codes[e], w.block_scale[e], torch.bfloat16) for e in range(len(counts))]
        for w in (t.w1, t.w2)
    ]

    def floor() -> None:
        for e, rows in enumerate(counts):
            if rows:
                (t.x[e, :rows] @ dense[0][e].T)[:, : dense[1][e].shape[1]] @ dense[1][e].T

    least = line("  bfloat16 matmuls alone", milliseconds(floor, 3))
    print(
        f"  reference against the loop {each / ours:.2f} times as fast, {ours / least:.1f} times the matmuls"
    )


if __name__ == "__main__":
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    tensors()
    layer()

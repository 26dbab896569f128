"""How long the references take: quantize, decode and the masked MoE, beside other libraries and what the layer is built of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.bench.peers import quantizers
from harness.bench.timing import Timing, in_a_graph, timed
from harness.problems.problem import parse_problem
from harness.problems.tensors import ProblemTensors
from reference.e2m1 import decode_e2m1, pack_e2m1
from reference.e4m3 import decode_e4m3
from reference.fast.launch import has_kernels, torch_alone
from reference.moe import masked_moe
from reference.nvfp4 import BLOCK, decode_blocks, global_scale_enc, quantize_nvfp4

TENSOR = {"cpu": (2048, 7168), "cuda": (8192, 7168)}
LAYER = {
    "cpu": "v2:8x128x2048x1024:128*8:normal:1",
    "cuda": "v2:32x1024x7168x2048:0,1024,264*28,1,51:normal:8",
}
"""On a GPU a rank of DeepSeek-R1 at EP 8, with 8,468 valid rows."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: was run.
        timing: how long it took, None where it does not run here.
        note: beside it.
    """

    what: str
    timing: Timing | None
    note: str = ""


def rows(device: str) -> Iterator[Row]:
    """Yield the lines, each as soon as it is measured.

    Args:
        device: "cpu" or "cuda".
    """
    yield from _tensors(device)
    yield from _layer(device)


def _tensors(device: str) -> Iterator[Row]:
    x = torch.randn(TENSOR[device], device=device).bfloat16()
    scale = global_scale_enc(x.abs().max().float())
    shape = " x ".join(map(str, x.shape))
    copy = in_a_graph(x.clone) if x.is_cuda else timed(x.clone)
    bytes_a_second = 4 * x.numel() / copy.seconds
    yield Row(f"copy {shape} bfloat16", copy, f"{bytes_a_second / 1e9:,.0f} GB/s")

    def share(found: Timing) -> str:
        return f"{x.numel() * (3 + 1 / 16) / found.seconds / bytes_a_second:.0%} of a copy's bandwidth"

    of = quantize_nvfp4(x, scale)

    def decode() -> Tensor:
        return decode_blocks(of.codes, of.block_scale, torch.bfloat16)

    for name, run in (("quantize", lambda: quantize_nvfp4(x, scale)), ("decode", decode)):
        found = timed(run)
        yield Row(f"{name} {shape}", found, share(found))
        if has_kernels(x):
            with torch_alone():
                found = timed(run)
            yield Row("  in torch alone", found, share(found))
    with torch_alone():
        ours = timed(lambda: pack_e2m1(quantize_nvfp4(x, scale).codes))
    yield Row("quantize and pack, in torch alone", ours)
    for name, peer in quantizers(x, scale).items():
        if isinstance(peer, str):
            yield Row(f"  {name}", None, peer)
            continue
        theirs = timed(peer)
        yield Row(f"  {name}", theirs, f"{theirs.seconds / ours.seconds:.1f} times ours")


def _layer(device: str) -> Iterator[Row]:
    t = ProblemTensors(parse_problem(LAYER[device]), device)
    given: tuple[Any, ...] = (
        t.x, t.input_scale, t.w1.codes, t.w1.block_scale, t.w1_alpha, t.w2.codes, t.a2_scale, t.w2.block_scale,
        t.w2_alpha, t.masked_m,
    )  # fmt: skip
    counts = t.masked_m.tolist()
    ours = timed(lambda: masked_moe(*given))
    layers = [ours]
    experts, _, hidden, inter = (*t.x.shape[:2], t.x.shape[2], t.w2.codes.shape[2])
    what = f"masked MoE, {experts} experts, {hidden} x {inter}, {sum(counts):,} rows"
    yield Row(what, ours, _memory(lambda: masked_moe(*given)) if t.x.is_cuda else "")
    if has_kernels(t.x):
        with torch_alone():
            layers.append(timed(lambda: masked_moe(*given)))
            yield Row("  in torch alone", layers[1], _memory(lambda: masked_moe(*given)))
    for name, decode in (("", decode_blocks), (", decoded by definition", _decoded_by_definition)):
        with torch_alone():
            each = timed(_by_expert(t, counts, decode))
        times = " and ".join(f"{each.seconds / one.seconds:.2f}" for one in layers)
        yield Row(f"  float32, expert by expert{name}", each, f"{times} times ours")
    least = timed(_matmuls(t, counts))
    yield Row(
        "  bfloat16 matmuls alone", least, f"ours takes {ours.seconds / least.seconds:.1f} times as long"
    )


def _memory(run: Callable[[], object]) -> str:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**30:.2f} GiB over the inputs"


def _decoded_by_definition(codes: Tensor, block_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Decode code by code and then multiply, as `decode_blocks` did before it had other forms."""
    blocks = decode_e2m1(codes).to(dtype).view(*block_scale.shape, BLOCK)
    return (blocks * decode_e4m3(block_scale).to(dtype).unsqueeze(-1)).flatten(-2)


def _by_expert(
    t: ProblemTensors, counts: list[int], decode: Callable[[Tensor, Tensor, torch.dtype], Tensor]
) -> Callable[[], None]:
    """Return what many tests have as their reference: each expert's weights to float32, two matmuls, no rounding."""

    def run() -> None:
        for e, rows in enumerate(counts):
            if rows:
                w1 = decode(t.w1.codes[e], t.w1.block_scale[e], torch.float32)
                gate, up = (t.x[e, :rows].float() @ w1.T).chunk(2, -1)
                middle = torch.nn.functional.silu(gate) * up
                middle @ decode(t.w2.codes[e], t.w2.block_scale[e], torch.float32).T

    return run


def _matmuls(t: ProblemTensors, counts: list[int]) -> Callable[[], None]:
    """Return the layer's matmuls in bfloat16, of weights that are decoded before."""
    w1, w2 = (decode_blocks(w.codes, w.block_scale, torch.bfloat16) for w in (t.w1, t.w2))

    def run() -> None:
        for e, rows in enumerate(counts):
            if rows:
                (t.x[e, :rows] @ w1[e].T)[:, : w2.shape[2]] @ w2[e].T

    return run

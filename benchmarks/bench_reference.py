"""Side by side: reference quantize against torchao, and the masked MoE reference against its own floor.

python benchmarks/bench_reference.py
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch

from harness.problems.problem import Problem
from harness.problems.tensors import ProblemTensors
from reference.e2m1 import pack_e2m1
from reference.moe import masked_moe
from reference.nvfp4 import decode_blocks, global_scale_enc, quantize_nvfp4


def best_and_median(run: Callable[[], object], times: int = 7) -> tuple[float, float]:
    """Return the shortest and the median time of a call in seconds, after one warm-up."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), statistics.median(seconds)


def quantize() -> None:
    """Quantize and pack 2048 x 7168 bfloat16."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize
    x = torch.randn(2048, 7168).bfloat16()
    scale = global_scale_enc(x.abs().max())
    ours = best_and_median(lambda: pack_e2m1(quantize_nvfp4(x, scale).codes))
    theirs = best_and_median(lambda: nvfp4_quantize(x, 16, 1 / scale))
    print(f"quantize + pack 2048x7168: reference {ours[1]:.3f} s (best {ours[0]:.3f}), "
          f"torchao {theirs[1]:.3f} s (best {theirs[0]:.3f}), ratio {theirs[1] / ours[1]:.2f}")  # fmt: skip


def moe() -> None:
    """The masked MoE of 8 experts, k 2048, n 1024, 128 rows, against dequantize plus float64 matmuls."""
    t = ProblemTensors(Problem(8, 128, 2048, 1024, (128,) * 8, seed=1))
    arguments = (t.x, t.input_scale, t.w1.codes, t.w1.block_scale, t.w1_alpha, t.w2.codes, t.a2_scale,
                 t.w2.block_scale, t.w2_alpha, t.masked_m)  # fmt: skip
    quantized = quantize_nvfp4(t.x, t.input_scale)
    hidden = quantize_nvfp4(torch.randn(8, 128, 1024).bfloat16(), t.a2_scale)

    def floor() -> None:
        torch.bmm(
            decode_blocks(quantized.codes, quantized.block_scale),
            decode_blocks(t.w1.codes, t.w1.block_scale).mT,
        )
        torch.bmm(
            decode_blocks(hidden.codes, hidden.block_scale), decode_blocks(t.w2.codes, t.w2.block_scale).mT
        )

    ours, least = best_and_median(lambda: masked_moe(*arguments), 5), best_and_median(floor, 5)
    print(f"masked MoE 8x128x2048x1024: reference {ours[1]:.3f} s, dequantize + float64 bmm {least[1]:.3f} s, "
          f"ratio {ours[1] / least[1]:.2f}")  # fmt: skip


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    quantize()
    moe()

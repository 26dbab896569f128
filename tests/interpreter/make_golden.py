"""Make data/golden.npz: outputs of FlashInfer's masked GEMM, interpreted, on small problems with their inputs.

Run with the packages of `make test-flashinfer`: python -m tests.interpreter.make_golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harness.candidates import layouts
from harness.candidates.cutedsl_on_cpu import gemm

GOLDEN = Path(__file__).parent / "data" / "golden.npz"
SENTINEL = 13.0
# name: experts, rows, n, k, masked_m, type, options
PROBLEMS = {
    "bfloat16": (2, 40, 64, 192, (40, 3), "bfloat16", {}),
    "float32": (1, 130, 64, 128, (129,), "float32", {}),
    "float16": (2, 140, 64, 64, (0, 1), "float16", {"mma_tiler_mn": (128, 256)}),
    "pair": (1, 130, 64, 320, (2,), "float32", {"mma_tiler_mn": (256, 128), "cluster_shape_mn": (2, 1)}),
    "inexact": (1, 24, 64, 1024, (24,), "float32", {}),  # scales so wide that every sum is cut
}


def inputs(seed, experts, rows, n, k, *, scales_below=0x50):
    """Codes and scale bytes of both operands, and alpha."""
    draw = np.random.default_rng(seed)
    codes = [draw.integers(0, 16, (experts, r, k), dtype=np.uint8) for r in (rows, n)]
    scales = [
        draw.integers(0x78 - scales_below, scales_below, (experts, r, k // 16), dtype=np.uint8)
        for r in (rows, n)
    ]
    return codes, scales, draw.random(experts, dtype=np.float32) + np.float32(0.5)


def interpreted(name):
    """Inputs and output of one problem, as arrays to store."""
    experts, rows, n, k, masked_m, dtype, options = PROBLEMS[name]
    codes, scales, alpha = inputs(
        sum(name.encode()), experts, rows, n, k, scales_below=0x78 if name == "inexact" else 0x50
    )
    out = layouts.empty_out(experts, rows, n, getattr(torch, dtype), "cpu", SENTINEL)
    operands = [
        (layouts.operand(torch.from_numpy(c)), layouts.scales(torch.from_numpy(s)))
        for c, s in zip(codes, scales, strict=True)
    ]
    gemm(*operands, out, torch.tensor(masked_m, dtype=torch.int32), torch.from_numpy(alpha), options)
    stored = {
        "codes_a": codes[0],
        "codes_b": codes[1],
        "scales_a": scales[0],
        "scales_b": scales[1],
        "alpha": alpha,
    }
    return stored | {"out": out.permute(2, 0, 1).float().numpy()}


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    found = {f"{name}/{key}": array for name in PROBLEMS for key, array in interpreted(name).items()}
    np.savez_compressed(GOLDEN, **found)

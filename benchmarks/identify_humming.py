"""Identify Humming's masked FP4 GEMM on a GPU: its modes, where they change with k, and what a fault of one tile looks like.

    python benchmarks/identify_humming.py [--tries 100] [--mode default]

Needs `pip install humming-kernels` and nvcc. Prints what is found of both modes, then how often the outputs as they are, and
the outputs with one tile of 64 x 64 times 1.01, are legal in the mode that splits k.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import Traits
from harness.identification.gemm import gemm_findings
from harness.judging.gemm import judge_gemm
from harness.judging.predicted import Prediction
from reference.bounds import Accumulator
from reference.e2m1 import pack_e2m1
from reference.matrix_units import Summation
from reference.nvfp4 import decode_blocks

ROWS, COLUMNS = 128, 256


@dataclass
class Humming:
    """masked_grouped_gemm by humming-kernels, activations decoded to bfloat16, which holds them exactly.

    Attributes:
        invariant: the mode that does not split k.
    """

    invariant: bool
    traits: Traits = field(
        default_factory=lambda: Traits(
            accumulator_chunk=16, k_multiple=256, n_multiple=256, store_rows=1, out_dtypes=("bfloat16",)
        )
    )

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Any,
    ) -> None:
        """Write alpha * a @ b.T into the valid rows of out."""
        from humming.layer import HummingLayer

        (x, x_scale), (w, w_scale) = (
            (codes, layouts.block_scales_of(scales, codes.shape[1], codes.shape[2] // 16))
            for codes, scales in ((layouts.codes_of(a), a_scale), (layouts.codes_of(b), b_scale))
        )
        experts, n, k = w.shape
        layer = HummingLayer(
            shape_n=n, shape_k=k, num_experts=experts, torch_dtype=torch.bfloat16,
            weight_config={"quant_method": "modelopt", "quant_algo": "nvfp4"},
        )  # fmt: skip
        factor = torch.ones(experts, device="cuda") if alpha is None else alpha.reshape(-1).float()
        layer.load_from_tensors(
            {
                "weight": pack_e2m1(w),
                "weight_scale": w_scale.contiguous().view(torch.float8_e4m3fn),
                "weight_scale_2": factor.clone(),
            }
        )
        layer.cuda().transform()
        values = decode_blocks(x, x_scale, torch.float32).bfloat16()
        stored = torch.zeros(experts * x.shape[1], n, dtype=torch.bfloat16, device="cuda")
        layer(
            values.view(-1, k), outputs=stored, expert_layout=masked_m, valid_shape_m=int(masked_m.sum()),
            compute_config={"gemm_type": "grouped_masked", "use_batch_invariant": self.invariant},
        )  # fmt: skip
        for expert, rows in enumerate(masked_m.tolist()):
            out[:rows, :, expert] = stored.view(experts, -1, n)[expert, :rows]


def identify(invariant: bool) -> Summation | None:
    started = time.monotonic()
    found = gemm_findings(Humming(invariant))
    print(f"\n{'use_batch_invariant' if invariant else 'default'}, {time.monotonic() - started:.0f} s:")
    for finding in found.findings:
        print(f"  {finding}", flush=True)
    return found.summation


def judged(summation: Summation, k: int, tries: int) -> None:
    """Print how many outputs are flagged as they are, and with one tile times 1.01."""
    flagged, caught, started = 0, 0, time.monotonic()
    candidate, mode = Humming(invariant=False), summation.at(k)
    for seed in range(tries):
        draw = torch.Generator().manual_seed(seed)
        sides = []
        for rows in (ROWS, COLUMNS):
            codes = torch.randint(0, 16, (1, rows, k), generator=draw, dtype=torch.uint8).cuda()
            scale = torch.randint(48, 64, (1, rows, k // 16), generator=draw, dtype=torch.uint8).cuda()
            sides.append((codes, scale))
        (a, a_scale), (b, b_scale) = sides
        alpha, counts = torch.rand(1, generator=draw).cuda() + 0.5, torch.tensor([ROWS], dtype=torch.int32)
        out = layouts.empty_out(1, ROWS, COLUMNS, torch.bfloat16, "cuda", 0.0)
        candidate.masked_grouped_gemm(
            layouts.operand(a), layouts.scales(a_scale), layouts.operand(b), layouts.scales(b_scale), out,
            counts.cuda(), alpha,
        )  # fmt: skip
        values = [decode_blocks(codes, scale, torch.float32) for codes, scale in sides]
        prediction = Prediction(mode, values[0], a_scale, values[1], b_scale) if mode else None
        altered = out.permute(2, 0, 1).clone()
        row, column = (int(torch.randint(0, size // 64, (), generator=draw)) * 64 for size in (ROWS, COLUMNS))
        altered[:, row : row + 64, column : column + 64] *= 1.01
        for got, bad in ((out.permute(2, 0, 1), False), (altered, True)):
            compared = judge_gemm(
                "gemm", got, *values, alpha, [ROWS], Accumulator(24, 16, measured=True), prediction=prediction
            )
            caught += bad and compared.illegal > 0
            flagged += not bad and compared.illegal > 0
            if seed == 0:
                print(f"  k {k:,}: {compared.judged}, {compared.illegal} illegal", flush=True)
    print(
        f"  k {k:,}, {mode}: {flagged} of {tries} flagged as they are, {caught} of {tries} with x1.01 on one tile, "
        f"{(time.monotonic() - started) / tries:.2f} s each"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=100, help="problems of each k (100)")
    parser.add_argument("--mode", choices=("default", "invariant"), help="one of the modes alone")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if options.mode != "invariant" and (summation := identify(invariant=False)) is not None:
        for k in (1024, 1792):
            judged(summation, k, options.tries)
    if options.mode != "default":
        identify(invariant=True)


if __name__ == "__main__":
    main()

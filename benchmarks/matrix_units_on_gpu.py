"""Confirm the models of reference/matrix_units on a GPU: cuBLAS through torch, and Humming's masked FP4 GEMM.

    python benchmarks/matrix_units_on_gpu.py [--dots 1000000] [--humming]

Prints, for each operand type, data and k, which order along k explains every output bit for bit (or how many outputs the
best one leaves unexplained), and the time of the model. --humming needs `pip install humming-kernels` and nvcc.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reference.e2m1 import decode_e2m1, unpack_e2m1
from reference.matrix_units import UNITS, KOrder, MatrixUnit, Operand, even_cuts, matmul

F16, F8 = UNITS["sm_90 f16"], UNITS["sm_90 f8"]


def data(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(seed)
    x = torch.randn(shape, generator=generator, device="cuda")
    if kind == "outliers":
        x = x * torch.exp(2 * torch.randn(shape, generator=generator, device="cuda"))
    return x


def orders(k: int) -> Iterator[tuple[str, KOrder]]:
    """Return what a library may do along k, the likely ones first."""
    yield "one pass", KOrder()
    for every in (64, 128, 256, 512):
        yield f"promoted every {every}", KOrder(promote=every)
    for parts in (2, 3, 4, 5, 6, 8, 12, 16):
        for tile in (32, 64, 128):
            cuts = even_cuts(k, parts, tile)
            if len(cuts) == parts - 1:
                for pairwise in (False, True) if parts > 2 else (False,):
                    words = f"{parts} parts of whole tiles of {tile}{', pairwise' if pairwise else ''}"
                    yield words, KOrder(cuts=cuts, pairwise=pairwise)


def explain(got: Tensor, unit: MatrixUnit, a: Operand, b: Operand) -> tuple[str, int, float]:
    """Return the order that leaves fewest outputs unexplained, their number, and the seconds of one prediction."""
    best, fewest, seconds = "", got.numel() + 1, 0.0
    some = slice(0, 64)  # rows on which an order is tried first
    for words, order in orders(a.k):
        left = int((matmul(unit, a.at(some), b, order).to(got.dtype) != got[some]).sum())
        if left * got.shape[0] < fewest * 64:
            torch.cuda.synchronize()
            started = time.monotonic()
            left = int((matmul(unit, a, b, order).to(got.dtype) != got).sum())
            torch.cuda.synchronize()
            if left < fewest:
                best, fewest, seconds = words, left, time.monotonic() - started
        if not fewest:
            break
    return best, fewest, seconds


def cublas(dots: int) -> None:
    def bf16(a: Tensor, b: Tensor) -> Tensor:
        return torch.mm(a, b.T, out_dtype=torch.float32)

    def fp8(fast: bool) -> Callable[[Tensor, Tensor], Tensor]:
        one = torch.ones((), device="cuda")
        return lambda a, b: torch._scaled_mm(  # noqa: SLF001 - torch's only FP8 product with float32 output
            a, b.T, one, one, out_dtype=torch.float32, use_fast_accum=fast
        )

    cases = [
        ("bfloat16", torch.bfloat16, "bfloat16", F16, bf16),
        ("float16", torch.float16, "float16", F16, bf16),
        ("E4M3, fast accumulation", torch.float8_e4m3fn, "e4m3", F8, fp8(True)),
        ("E4M3", torch.float8_e4m3fn, "e4m3", F8, fp8(False)),
    ]
    side = int(dots**0.5) // 128 * 128
    for name, dtype, number_format, unit, call in cases:
        for kind in ("normal", "outliers"):
            for k in (256, 1024, 2048, 4096, 7168):
                a, b = (data(kind, (side, k), seed).clamp(-448, 448).to(dtype) for seed in (1, 2))
                report(
                    f"cuBLAS, {name}",
                    kind,
                    k,
                    call(a, b),
                    unit,
                    Operand.of(a, number_format),
                    Operand.of(b, number_format),
                )


def report(name: str, kind: str, k: int, got: Tensor, unit: MatrixUnit, a: Operand, b: Operand) -> None:
    words, left, seconds = explain(got, unit, a, b)
    print(f"| {name} | {kind} | {k} | {got.numel():,} | {words} | {left:,} | {seconds:.2f} |", flush=True)


def humming(formats: list[str], modes: tuple[bool, ...]) -> None:
    """Call the masked grouped GEMM of humming-kernels, float32 accumulation, with and without `use_batch_invariant`."""
    from humming.layer import HummingLayer

    experts, rows, n = 2, 128, 512
    for quantized in formats:
        block = 16 if quantized == "nvfp4" else 32
        for kind in ("normal", "outliers"):
            for k in (256, 512, 1024, 2048, 4096, 7168):
                generator = torch.Generator(device="cuda").manual_seed(k)
                packed = torch.randint(
                    0, 256, (experts, n, k // 2), generator=generator, device="cuda"
                ).byte()
                tensors = {"weight": packed}
                if quantized == "nvfp4":
                    scale = (
                        data(kind, (experts, n, k // block), 3)
                        .abs()
                        .clamp(2**-6, 448)
                        .to(torch.float8_e4m3fn)
                    )
                    tensors |= {"weight_scale": scale, "weight_scale_2": torch.ones(experts, device="cuda")}
                    config = {"quant_method": "modelopt", "quant_algo": "nvfp4"}
                    factors = scale.double()
                else:
                    exponent = data(kind, (experts, n, k // block), 3).round().clamp(-12, 12)
                    tensors["weight_scale"] = (exponent + 127).byte()
                    config = {"quant_method": "mxfp4"}
                    factors = torch.exp2(exponent.double())
                x = data(kind, (experts, rows, k), 4).bfloat16()
                layer = HummingLayer(
                    shape_n=n,
                    shape_k=k,
                    weight_config=config,
                    num_experts=experts,
                    torch_dtype=torch.bfloat16,
                )
                layer.load_from_tensors({name: value.clone() for name, value in tensors.items()})
                layer.cuda().transform()
                weights = decode_e2m1(unpack_e2m1(packed)).double() * factors.repeat_interleave(block, dim=-1)
                for invariant in modes:
                    out = torch.full((experts * rows, n), torch.nan, dtype=torch.bfloat16, device="cuda")
                    counts = torch.full((experts,), rows, dtype=torch.int32, device="cuda")
                    layer(
                        x.view(-1, k), outputs=out, expert_layout=counts, valid_shape_m=experts * rows,
                        compute_config={"gemm_type": "grouped_masked", "use_batch_invariant": invariant},
                    )  # fmt: skip
                    name = f"Humming, {quantized}{', batch invariant' if invariant else ''}"
                    for e in range(experts):
                        a, b = (Operand.of(t[e], "bfloat16") for t in (x, weights))
                        report(name, kind, k, out.view(experts, rows, n)[e], F16, a, b)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dots", type=int, default=1_000_000, help="of each row of the table (1000000)")
    parser.add_argument("--humming", choices=("nvfp4", "mxfp4"), action="append")
    parser.add_argument(
        "--default-mode", action="store_true", help="Humming's default mode too, which splits k"
    )
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| library, operands | data | k | outputs | best order | not explained | model s |")
    print("|---|---|---|---|---|---|---|")
    if options.humming:
        humming(options.humming, (True, False) if options.default_mode else (True,))
    else:
        cublas(options.dots)


if __name__ == "__main__":
    main()

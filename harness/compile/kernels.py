"""How each kernel of KERNELS is called: FlashInfer's own functions, with tensors that have a shape and no memory.

Runs in the worker, under `no_gpu.pretend`, which ends the call where the kernel is compiled. Nothing of FlashInfer is
copied: which checks run, which kernel is chosen and with which arguments is the package's own business.

Read in flashinfer-python 0.7.2.post1: gemm/kernels/grouped_gemm_masked_wrapper.py:45, quantization/fp4_quantization.py:957
and :1578, fused_moe/cute_dsl/blockscaled_contiguous_*_fusion.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from harness.compile.case import CompileCase, pair

ROWS = 256  # of a quantizer's input: a run-time argument of the kernels
_EXACT = "FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH"


def call_kernel(case: CompileCase, tensor: Callable[..., Any]) -> None:
    """Call the function of FlashInfer that compiles this case's kernel.

    Args:
        case: what to compile.
        tensor: `tensor(*shape, dtype="uint8")` makes a contiguous tensor that claims to be on the GPU.
    """
    _CALLS[case.kernel](case.full(), tensor)


def _masked_gemm(o: dict[str, Any], tensor: Callable[..., Any]) -> None:
    """A (m, k, l), B (n, k, l), out (m, n, l); `swap` hands the operands over in exchanged places, as the wrapper asks.

    `ranks`: fuse the combine step for that many ranks. `signals`: count finished tiles in dst_signals.
    """
    import flashinfer.gemm

    experts, m, n, k = o["l"], o["m"], o["n"], o["k"]
    packed = o["ab"] == "float4_e2m1fn"
    dtype, width = ("uint8", k // 2) if packed else (o["ab"], k)
    first = tensor(experts, m, width, dtype=dtype).permute(1, 2, 0), tensor(1)
    second = tensor(experts, n, width, dtype=dtype).permute(1, 2, 0), tensor(1)
    if o["swap"]:  # A's rows become the contiguous extent of the output
        out = tensor(experts, n, m, dtype=o["out"]).permute(2, 1, 0)
    else:
        out = tensor(experts, m, n, dtype=o["out"]).permute(1, 2, 0)
    extra: dict[str, Any] = {}
    if o["alpha"]:
        extra |= {"alpha": tensor(experts, dtype="float32"), "alpha_dtype": "float32"}
    if o["signals"]:
        extra["dst_signals"] = tensor(experts, dtype="int32")
    if o["ranks"]:
        extra |= {
            "is_combine_fusion": True,
            "num_ranks": o["ranks"],
            "topk_weights": tensor(experts, m, dtype="float32"),
            "idx_src_info": tensor(experts, m, dtype="int32"),
            "rank_src_info": tensor(experts, m, dtype="int32"),
            "out_ptrs": tensor(o["ranks"], dtype="int64"),
            "barrier_flag_local": tensor(148, dtype="int32"),
            "barrier_flag_multicast": tensor(148, dtype="int32"),
        }
    flashinfer.gemm.grouped_gemm_nt_masked(
        *((second, first) if o["swap"] else (first, second)),
        out,
        tensor(experts, dtype="int32"),
        ab_dtype=o["ab"],
        sf_dtype=o["sf"],
        c_dtype=o["out"],
        sf_vec_size=o["vec"],
        is_swap_ab=bool(o["swap"]),
        mma_tiler_mn=pair(o["tile"]),
        cluster_shape_mn=pair(o["cluster"]),
        **extra,
    )


def _nvfp4_quantize(o: dict[str, Any], tensor: Callable[..., Any]) -> None:
    _arithmetic(o)
    _flashinfer().nvfp4_quantize(
        tensor(ROWS, o["k"], dtype=o["dtype"]),
        tensor(1, dtype="float32"),
        sfLayout=_layout(o),
        backend="cute-dsl",
        per_token_activation=bool(o["per_token"]),
    )


def _silu_mul_quantize(o: dict[str, Any], tensor: Callable[..., Any]) -> None:
    """Input [gate, up], twice k wide."""
    _arithmetic(o)
    _flashinfer().silu_and_mul_nvfp4_quantize(
        tensor(ROWS, 2 * o["k"], dtype=o["dtype"]),
        tensor(1, dtype="float32"),
        is_sf_swizzled_layout=o["layout"] != "linear",
        is_sf_8x4_layout=o["layout"] == "8x4",
    )


def _mxfp4_quantize(o: dict[str, Any], tensor: Callable[..., Any]) -> None:
    _flashinfer().mxfp4_quantize(
        tensor(ROWS, o["k"], dtype=o["dtype"]), backend="cute-dsl", sfLayout=_layout(o)
    )


def _mxfp8_quantize(o: dict[str, Any], tensor: Callable[..., Any]) -> None:
    _flashinfer().mxfp8_quantize(
        tensor(ROWS, o["k"], dtype=o["dtype"]), backend="cute-dsl", sf_swizzle_layout=_layout(o)
    )


def _flashinfer() -> Any:
    """Return the package; what it exports lazily is unknown to a type checker."""
    import flashinfer

    return flashinfer


def _layout(o: dict[str, Any]) -> Any:
    return getattr(_flashinfer().SfLayout, f"layout_{o['layout']}")


def _arithmetic(o: dict[str, Any]) -> None:
    """FlashInfer reads an environment variable at every call; workers serve one case at a time."""
    if o["fast"]:
        os.environ.pop(_EXACT, None)
    else:
        os.environ[_EXACT] = "1"


def _formats(quant: str) -> dict[str, Any]:
    if quant == "w4a4":
        return {
            "a_dtype": "float4_e2m1fn",
            "b_dtype": "float4_e2m1fn",
            "sf_dtype": "float8_e4m3fn",
            "sf_vec_size": 16,
        }
    return {
        "a_dtype": "float8_e4m3fn",
        "b_dtype": "float4_e2m1fn",
        "sf_dtype": "float8_e8m0fnu",
        "sf_vec_size": 32,
    }


def _activations(quant: str, rows: int, width: int, tensor: Callable[..., Any]) -> Any:
    if quant == "w4a4":
        return tensor(rows, width // 2)
    return tensor(rows, width, dtype="float8_e4m3fn")


def _moe_gemm1(o: dict[str, Any], tensor: Callable[..., Any]) -> None:
    """Gather, first GEMM, activation, quantization of the result: n is the rows of w1, gate and up interleaved."""
    from flashinfer.fused_moe.cute_dsl.blockscaled_contiguous_gather_grouped_gemm_act_fusion import (
        blockscaled_contiguous_gather_grouped_gemm_act_fusion,
    )
    from flashinfer.tllm_enums import ActivationType

    gated = o["activation"] == "swiglu"
    inter = o["n"] // (2 if gated else 1)
    formats = _formats(o["quant"])
    atoms = -(-inter // (4 * formats["sf_vec_size"]))
    blockscaled_contiguous_gather_grouped_gemm_act_fusion(
        _activations(o["quant"], ROWS, o["k"], tensor),
        tensor(o["l"], o["n"], o["k"] // 2),
        tensor(1),
        tensor(1),
        tensor(o["l"], dtype="float32"),
        tensor(16, dtype="int32"),
        tensor(16, dtype="int32"),
        tensor(8 * ROWS, dtype="int32"),
        tensor(1, dtype="int32"),
        out=_activations(o["quant"], 8 * ROWS, inter, tensor),
        out_scale=tensor(32, 4, 8 * ROWS // 128, 4, atoms, 1),
        global_scale=tensor(1, dtype="float32") if o["quant"] == "w4a4" else None,
        topk=o["topk"],
        c_dtype=formats["a_dtype"],
        quantize_output=True,
        mma_tiler_mn=pair(o["tile"]),
        cluster_shape_mn=pair(o["cluster"]),
        activation_type=ActivationType.Swiglu.value if gated else ActivationType.Relu2.value,
        gated=gated,
        **formats,
    )


def _moe_gemm2(o: dict[str, Any], tensor: Callable[..., Any]) -> None:
    """Second GEMM and the weighted sum over experts: atomically into the tokens' rows (`fused`), or one row per route."""
    from flashinfer.fused_moe.cute_dsl.blockscaled_contiguous_grouped_gemm_finalize_fusion import (
        blockscaled_contiguous_grouped_gemm_finalize_fusion,
    )

    blockscaled_contiguous_grouped_gemm_finalize_fusion(
        _activations(o["quant"], 8 * ROWS, o["k"], tensor),
        tensor(o["l"], o["n"], o["k"] // 2),
        tensor(1),
        tensor(1),
        tensor(o["l"], dtype="float32"),
        tensor(16, dtype="int32"),
        tensor(1, dtype="int32"),
        tensor(16, dtype="int32"),
        tensor(8 * ROWS, dtype="int32"),
        tensor(ROWS, o["topk"], dtype="float32"),
        out=tensor(ROWS if o["fused"] else ROWS * o["topk"], o["n"], dtype=o["out"]),
        out_dtype=o["out"],
        mma_tiler_mn=pair(o["tile"]),
        cluster_shape_mn=pair(o["cluster"]),
        use_fused_finalize=bool(o["fused"]),
        **_formats(o["quant"]),
    )


_CALLS: dict[str, Callable[[dict[str, Any], Callable[..., Any]], None]] = {
    "masked_gemm": _masked_gemm,
    "nvfp4_quantize": _nvfp4_quantize,
    "silu_mul_quantize": _silu_mul_quantize,
    "mxfp4_quantize": _mxfp4_quantize,
    "mxfp8_quantize": _mxfp8_quantize,
    "moe_gemm1": _moe_gemm1,
    "moe_gemm2": _moe_gemm2,
}

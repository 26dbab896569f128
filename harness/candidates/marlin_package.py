"""What `marlin` takes of SGLang: preparation of weights, the launch of moe_wna16_marlin_gemm.

Read in sglang 0.5.23; paths are relative to the package:
    kernels/ops/moe/moe_wna16_marlin.py               moe_wna16_marlin_gemm
    kernels/ops/quantization/gptq_marlin_repack.py    gptq_marlin_repack
    srt/layers/quantization/marlin_utils.py           marlin_permute_scales, marlin_make_workspace
    srt/layers/quantization/marlin_utils_fp4.py       nvfp4_marlin_process_scales, ..._global_scale, mxfp4_marlin_process_scales
    srt/layers/moe/fused_moe_triton/fused_marlin_moe.py   how they are called
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.candidates.engines.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from harness.candidates.slots import Slots

GEMM = "sglang.kernels.ops.moe.moe_wna16_marlin:moe_wna16_marlin_gemm"
REPACK = "sglang.kernels.ops.quantization.gptq_marlin_repack:gptq_marlin_repack"
_UTILS = "sglang.srt.layers.quantization.marlin_utils"
PERMUTE, WORKSPACE = f"{_UTILS}:marlin_permute_scales", f"{_UTILS}:marlin_make_workspace"
_FP4 = "sglang.srt.layers.quantization.marlin_utils_fp4"
NVFP4_SCALES, MXFP4_SCALES = (f"{_FP4}:{name}_marlin_process_scales" for name in ("nvfp4", "mxfp4"))
NVFP4_FACTOR = f"{_FP4}:nvfp4_marlin_process_global_scale"
PARAMETERS = {
    GEMM: (
        "a", "c_or_none", "b_q_weight", "b_bias_or_none", "b_scales", "global_scale_or_none", "b_zeros_or_none",
        "g_idx_or_none", "perm_or_none", "workspace", "sorted_token_ids", "expert_ids", "num_tokens_post_padded",
        "topk_weights", "moe_block_size", "top_k", "mul_topk_weights", "is_ep", "b_q_type", "size_m", "size_n", "size_k",
        "is_k_full", "use_atomic_add", "use_fp32_reduce", "is_zp_float", "expert_ids_are_sorted", "zero_inactive_output",
        "has_inactive_prefix_count",
    ),
    REPACK: ("b_q_weight", "perm", "size_k", "size_n", "num_bits"),
    PERMUTE: ("s", "size_k", "size_n", "group_size"),
    WORKSPACE: ("device", "max_blocks_per_sm"),
    NVFP4_SCALES: ("marlin_scales",),
    MXFP4_SCALES: ("marlin_scales", "input_dtype"),
    NVFP4_FACTOR: ("global_scale",),
}  # fmt: skip
"""By function: every parameter that is passed to it, by keyword."""
BLOCK = {"nvfp4": 16, "mxfp4": 32}
_SLOTS_OF_BLOCK = (8, 16, 32, 48, 64)
_FULL = 0.9  # of a block of slots, from which on fused_marlin_moe takes a larger one
_NO_KERNELS = "sglang-kernel is not installed, which SGLang's Marlin needs"
_BUILD_FAILED = "Failed to build JIT module"


def engine(*, on_gpu: bool) -> Engine:
    """Return SGLang, as it is installed."""
    modules = tuple(dict.fromkeys(target.partition(":")[0] for target in PARAMETERS))
    return Engine("sglang", modules, on_gpu=on_gpu)


def prepared(sglang: Engine, weights: str, packed: Tensor, scale: Tensor, factor: Tensor) -> dict[str, Any]:
    """Return weights in the kernel's order: tensors with the experts first, and n and k.

    Args:
        sglang: the package.
        weights: "nvfp4" or "mxfp4".
        packed: `(l, n, k/2)` uint8.
        scale: `(l, n, k/block)` uint8, linear.
        factor: `(l,)` float32, of each expert.

    Raises:
        ValueError: MXFP4 with a factor that is no power of two.
        NotImplementedError: the package's source does not compile here.
    """
    import torch

    n, k, block = packed.shape[1], 2 * packed.shape[2], BLOCK[weights]
    e4m3 = weights == "nvfp4"
    scale = scale.contiguous() if e4m3 else _times_powers(scale, factor)
    values = scale.view(torch.float8_e4m3fn if e4m3 else torch.float8_e8m0fnu).to(torch.bfloat16)
    none = torch.empty(0, dtype=torch.int32, device=packed.device)
    shape = {"size_k": k, "size_n": n}
    made: dict[str, Any] = {"n": n, "k": k}
    with sglang.running():
        in_order = [
            _called(
                sglang,
                REPACK,
                b_q_weight=rows.view(torch.int32).T.contiguous(),
                perm=none,
                num_bits=4,
                **shape,
            )
            for rows in packed
        ]
        permuted = [
            _called(sglang, PERMUTE, s=each.T.contiguous(), group_size=block, **shape) for each in values
        ]
        if e4m3:
            scales = [_called(sglang, NVFP4_SCALES, marlin_scales=each) for each in permuted]
            made["factor"] = _called(sglang, NVFP4_FACTOR, global_scale=factor.to(torch.bfloat16))
        else:
            scales = [_called(sglang, MXFP4_SCALES, marlin_scales=e, input_dtype=e.dtype) for e in permuted]
    # Stacked as bytes: not every torch stacks these types.
    as_bytes = torch.stack([each.view(torch.uint8) for each in scales])
    return made | {"weight": torch.stack(in_order), "weight_scale": as_bytes.view(scales[0].dtype)}


def launch(
    sglang: Engine,
    x: Tensor,
    slots: Slots,
    weights: Tensor,
    prepared_weights: Mapping[str, Any],
    *,
    weighted: bool,
    atomic: bool,
) -> tuple[Tensor, int]:
    """Return each slot's row times its expert's weights, `(slots, n)`, and how many slots a block has.

    Args:
        sglang: the package.
        x: `(tokens, k)`, or `(slots, k)` for the second GEMM.
        slots: of all tokens.
        weights: `(tokens, topk)` float32, routing weights.
        prepared_weights: of `prepared`.
        weighted: multiply by them.
        atomic: add partial sums by atomic operations in bfloat16.

    Raises:
        NotImplementedError: the package's source does not compile here.
    """
    import torch

    number, n, k = slots.topk_idx.numel(), prepared_weights["n"], prepared_weights["k"]
    sizes = (size for size in _SLOTS_OF_BLOCK if number / slots.experts / size < _FULL)
    block = next(sizes, _SLOTS_OF_BLOCK[-1])
    sorted_ids, expert_ids, used = slots.aligned(block)
    out = torch.empty(number, n, dtype=x.dtype, device=x.device)
    with sglang.running():
        workspace = _called(sglang, WORKSPACE, device=x.device, max_blocks_per_sm=4)
        _called(
            sglang, GEMM, a=x, c_or_none=out, b_q_weight=prepared_weights["weight"], b_bias_or_none=None,
            b_scales=prepared_weights["weight_scale"], global_scale_or_none=prepared_weights.get("factor"),
            b_zeros_or_none=None, g_idx_or_none=None, perm_or_none=None, workspace=workspace, sorted_token_ids=sorted_ids,
            expert_ids=expert_ids, num_tokens_post_padded=torch.cat((used, torch.zeros_like(used))), topk_weights=weights,
            moe_block_size=block, top_k=number // len(x), mul_topk_weights=weighted, is_ep=False, b_q_type=_e2m1(),
            size_m=len(x), size_n=n, size_k=k, is_k_full=True, use_atomic_add=atomic, use_fp32_reduce=True,
            is_zp_float=False, expert_ids_are_sorted=True, zero_inactive_output=weighted, has_inactive_prefix_count=True,
        )  # fmt: skip
    return out, block


def _called(sglang: Engine, target: str, **named: Any) -> Any:
    """Call a function of the package.

    Raises:
        NotImplementedError: its source does not compile here: the compiler's own words.
    """
    try:
        return sglang.get(target)(**named)
    except RuntimeError as error:
        if not str(error).startswith(_BUILD_FAILED):
            raise
        raise NotImplementedError(f"{sglang.version}: {error}") from error


def _e2m1() -> Any:
    """Return the kernel package's number for E2M1 weights.

    Raises:
        NotImplementedError: sglang-kernel is not installed.
    """
    try:
        found = importlib.import_module("sgl_kernel.scalar_type").scalar_types.float4_e2m1f
    except ImportError as error:
        raise NotImplementedError(_NO_KERNELS) from error
    if not isinstance(getattr(found, "id", None), int):  # a stub of it
        raise NotImplementedError(_NO_KERNELS)
    return found


def _times_powers(scale: Tensor, factor: Tensor) -> Tensor:
    """Return E8M0 block scales `(l, n, k/32)` uint8 times factors of the experts, powers of two.

    Raises:
        ValueError: a factor is no power of two, or a block scale leaves E8M0's range with it.
    """
    import torch

    mantissa, exponent = torch.frexp(factor)
    moved = scale.int() + (exponent - 1).view(-1, 1, 1)
    if not bool((mantissa == 0.5).all()) or not bool(((moved >= 0) & (moved < 255)).all()):
        raise ValueError(
            "MXFP4 has no factor of an expert: alpha must be a power of two that the block scales can take"
        )
    return moved.to(torch.uint8)

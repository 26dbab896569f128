"""The masked MoE as SGLang composes it from the stages; used by every candidate that has the stages.

Source: SGLang srt/layers/moe/flashinfer_cutedsl_moe.py, flashinfer_cutedsl_moe_masked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def compose_masked_moe(
    stages: Any,
    hidden_states: tuple[Tensor, Tensor | None],
    input_global_scale: Tensor | None,
    w1: Tensor,
    w1_blockscale: Tensor,
    w1_alpha: Tensor,
    w2: Tensor,
    a2_global_scale: Tensor,
    w2_blockscale: Tensor,
    w2_alpha: Tensor,
    masked_m: Tensor,
    activation: str = "silu",
) -> Tensor:
    """Return the layer's output from a candidate's stages.

    Buffers start poisoned, where the engines take them as the allocator leaves them: what a stage fails to write is then
    NaN in every run, and not by chance the result of an earlier call.

    Args:
        stages: object with quantize_grouped, silu_mul_quantize_grouped and masked_grouped_gemm.
        hidden_states: (x `(l, m, k)` bfloat16, None), or the pair that quantize_grouped returns.
        input_global_scale: `(l,)` float32, None with a pair.
        w1: `(l, 2n, k/2)` uint8, gate rows first; `(l, n, k/2)` for relu2.
        w1_blockscale: float8_e4m3fn, swizzled 128x4.
        w1_alpha: `(l,)` float32.
        w2: `(l, k, n/2)` uint8.
        a2_global_scale: `(l,)` float32.
        w2_blockscale: float8_e4m3fn, swizzled 128x4.
        w2_alpha: `(l,)` float32.
        masked_m: `(l,)` int32.
        activation: "silu" or "relu2".

    Returns:
        `(l, m, k)` bfloat16.

    Raises:
        ValueError: an unknown activation; an input that is neither bfloat16 with a scale nor a pair without one.
    """
    import torch

    from harness.candidates import layouts
    from harness.emulation.memory import unwritten

    if activation not in {"silu", "relu2"}:
        raise ValueError(f"masked_moe: activation must be 'silu' or 'relu2', got {activation!r}")
    x, x_scale = hidden_states
    if (x_scale is None) == (input_global_scale is None):
        raise ValueError(
            "masked_moe: hidden_states must be (bfloat16, None) with input_global_scale, or a quantized pair without it"
        )
    if x_scale is None:
        x, x_scale = stages.quantize_grouped(x, masked_m, input_global_scale)
    rows, experts, device = x.shape[0], x.shape[2], x.device
    gemm1 = unwritten((experts, rows, w1.shape[1]), torch.bfloat16, device)
    stages.masked_grouped_gemm(
        x,
        x_scale,
        w1.permute(1, 2, 0),
        layouts.as_mma(w1_blockscale),
        gemm1.permute(1, 2, 0),
        masked_m,
        w1_alpha,
    )
    if activation == "silu":
        a2, a2_scale = stages.silu_mul_quantize_grouped(gemm1, masked_m, a2_global_scale)
    else:
        a2, a2_scale = stages.quantize_grouped(gemm1.relu().square(), masked_m, a2_global_scale)
    out = unwritten((experts, rows, w2.shape[1]), torch.bfloat16, device)
    stages.masked_grouped_gemm(
        a2,
        a2_scale,
        w2.permute(1, 2, 0),
        layouts.as_mma(w2_blockscale),
        out.permute(1, 2, 0),
        masked_m,
        w2_alpha,
    )
    return out

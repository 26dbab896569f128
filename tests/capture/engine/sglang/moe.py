"""A masked MoE as SGLang composes it, over names that it copies from FlashInfer."""

import torch
from flashinfer import scaled_fp4_grouped_quantize, silu_and_mul_scaled_nvfp4_experts_quantize
from flashinfer.gemm import grouped_gemm_nt_masked

KINDS = {"ab_dtype": "float4_e2m1fn", "sf_dtype": "float8_e4m3fn", "c_dtype": "bfloat16", "sf_vec_size": 16}


def flashinfer_cutedsl_moe_masked(
    hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale, w2_alpha,
    masked_m, activation="silu",
):  # fmt: skip
    x, _ = hidden_states
    experts, rows, hidden = x.shape
    packed, scales = scaled_fp4_grouped_quantize(x, masked_m, input_global_scale)
    gate_up = torch.empty(experts, rows, w1.shape[1], dtype=torch.bfloat16, device=x.device).permute(1, 2, 0)
    weights = w1.permute(1, 2, 0), w1_blockscale
    grouped_gemm_nt_masked(
        (packed, scales), weights, gate_up, masked_m, alpha=w1_alpha.view(1, 1, -1), **KINDS
    )
    packed, scales = silu_and_mul_scaled_nvfp4_experts_quantize(
        gate_up.permute(2, 0, 1), masked_m, a2_global_scale
    )
    out = torch.empty(experts, rows, hidden, dtype=torch.bfloat16, device=x.device)
    weights = w2.permute(1, 2, 0), w2_blockscale
    grouped_gemm_nt_masked(
        (packed, scales), weights, out.permute(1, 2, 0), masked_m, alpha=w2_alpha.view(1, 1, -1), **KINDS
    )
    return out

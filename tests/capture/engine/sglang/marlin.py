"""Where SGLang's Marlin layer is, over launches that round as the kernel does."""

import torch

from tests.capture.real.marlin_launches import Launches

LAUNCHES = Launches("sglang")


def fused_marlin_moe(
    hidden_states, w1, w2, w1_scale, w2_scale, gating_output, topk_weights, topk_ids, expert_map=None, w1_global_scale=None,
    w2_global_scale=None, w1_bias=None, workspace=None, num_bits=8, routed_scaling_factor=None, clamp_limit=None,
    gemm1_alpha=None, activation="silu", is_gated=True, no_combine=False,
):  # fmt: skip
    tokens, topk = topk_ids.shape
    order, experts, _ = LAUNCHES.aligned(topk_ids, 8, len(w1))

    def gemm(a, b, scales, factor, width, slots, second):
        out = torch.empty(tokens * topk, width, dtype=a.dtype)
        given = b, None, scales, factor, None, None, None, workspace, order, experts, None, topk_weights
        named = {"mul_topk_weights": second, "size_m": len(a), "top_k": slots}
        return LAUNCHES.sglang_gemm(a, out, *given, **named)

    gate_up = gemm(hidden_states, w1, w1_scale, w1_global_scale, w1.shape[2] // 2, topk, False)
    hidden = LAUNCHES.activated(gate_up, twice=False)
    rows = gemm(hidden, w2, w2_scale, w2_global_scale, hidden_states.shape[1], 1, True)
    total = LAUNCHES.summed(rows.view(tokens, topk, -1))
    return (total * (routed_scaling_factor or 1.0)).to(hidden_states.dtype)
